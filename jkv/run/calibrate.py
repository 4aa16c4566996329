"""The calibration of a model, end to end: decode a task's prompts, average the queries, write the statistics."""

import pathlib

from safetensors.numpy import save_file

from jkv.config.calibrate import CalibrateConfig
from jkv.engine.engine import Engine
from jkv.engine.events import Completion, Request
from jkv.engine.sampling import make_sampler
from jkv.errors import UserError
from jkv.files.whole import replacing
from jkv.load import default_dtype, load
from jkv.models.query_statistics import FILE, measure_query_statistics
from jkv.policies import Full, Retention
from jkv.tasks import load_task
from jkv.terminal.screen import Screen, busy


def calibrate(config: CalibrateConfig) -> None:
    """Decode with the full cache, measure, and write the statistics beside the model or to ``--out``.

    Raises:
        UserError: anything that a user can mend.
    """
    with busy(f"loading {config.model}", quiet=False):
        loaded = load(config.model, default_dtype(config.dtype))
        problems = load_task(config.task, loaded.tokenizer, model=loaded.name, limit=config.limit, seed=config.seed)
    requests = [Request(p.id, p.prompt_ids, config.max_new_tokens) for p in problems]
    slots = max(len(r.prompt_ids) for r in requests) + config.max_new_tokens
    engine = Engine(
        loaded.model, policy=Full(), rule=Retention(slots, slots), batch_size=min(config.batch_size, len(requests)),
        sampler=make_sampler(0.6, 0.95, 20), eos_ids=loaded.config.eos_ids, seed=config.seed,
    )  # fmt: skip
    with busy(f"decoding {len(requests)} problems", quiet=False):
        sequences = [
            (*event.request.prompt_ids, *event.token_ids)
            for event in engine.run(requests)
            if isinstance(event, Completion)
        ]
    sequences.sort()  # sums are rounded in this order, which must not depend on what finished first
    with busy("measuring queries", quiet=False):
        statistics = measure_query_statistics(loaded.model, sequences)
    path = pathlib.Path(config.out).expanduser() if config.out else loaded.path / FILE
    try:
        with replacing(path) as scratch:
            save_file(statistics, scratch)
    except Exception as error:  # safetensors wraps the operating system's errors in its own
        raise UserError(f"can't be written ({error})", where=str(path), mend="give another place with --out") from None
    console = Screen(stderr=True, highlight=False)
    console.print(f"queries of {sum(map(len, sequences)):,} tokens measured: {path}", soft_wrap=True)
