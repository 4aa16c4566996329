"""``jkv.decode(...)``: a run from Python, and what comes back."""

import dataclasses
import io
import json
import pathlib
import re
import shutil
import tempfile
import weakref
from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any

from qwix import QArray

from jkv.config.decode import DecodeConfig
from jkv.errors import UserError
from jkv.load import Loaded
from jkv.models.quantized import INT8
from jkv.run.closing import summary_table
from jkv.run.decode import run
from jkv.run.directory import SAMPLES
from jkv.run.opening import AtHand
from jkv.terminal import flags
from jkv.terminal.notebook_line import status_line
from jkv.terminal.screen import Screen

if TYPE_CHECKING:
    from jkv.report.view.shown import View

_WIDTH = 110
_FRAME = '<pre style="white-space: pre; overflow-x: auto; line-height: 1.25">{code}</pre>'
# Said by a model that is loaded already, and so by `jkv.load`.
_OF_LOADING = ("dtype", "weights", "mesh")


@dataclasses.dataclass(frozen=True, repr=False)
class Decoded:
    """A finished run: a sequence of its samples.

    summary: what summary.json has.  samples: the completions as samples.jsonl has them (id, text, answer, correct,
    token_ids, ...), by id and number.  directory: where these files are; without ``out`` they go when this object does.
    html: one thought with what was evicted on the way, and the closing table, as a notebook shows them.
    """

    summary: dict[str, Any]
    samples: list[dict[str, Any]]
    directory: pathlib.Path
    html: str

    def __len__(self) -> int:
        return len(self.samples)

    def __iter__(self) -> Iterator[dict[str, Any]]:
        return iter(self.samples)

    def __getitem__(self, index: int | slice) -> Any:
        return self.samples[index]

    def __fspath__(self) -> str:
        return str(self.directory)

    def __repr__(self) -> str:
        screen = Screen(file=io.StringIO(), width=_WIDTH, force_terminal=False, force_jupyter=False)
        with screen.capture() as said:
            screen.print(summary_table(self.summary))
        return said.get().rstrip()

    def _repr_html_(self) -> str:
        return self.html

    def view(self, *beside: Any, **words: Any) -> "View":
        """``jkv.view`` of this run, which needs ``trace=True``; see there."""
        from jkv.api.viewed import view

        return view(self, *beside, **words)


def decode_from_python(model: Any, config: str | None, words: Mapping[str, Any]) -> Decoded:
    """Run ``python -m jkv.decode`` with these words as its flags. model: a name, a directory, a hub id or a `Loaded`.

    Raises UserError.
    """
    loaded = model if isinstance(model, Loaded) else None
    words = dict(words)
    if loaded is not None:
        for name in _OF_LOADING:
            if words.get(name) is not None:
                raise UserError("the model is loaded already", where=name, mend=f"give {name} with the model's name")
        words |= {"model": loaded.name, "weights": INT8 if _is_int8(loaded) else None}
    elif model is not None:
        words["model"] = model
    rows = words.pop("task") if isinstance(words.get("task"), list | tuple) else None
    settled = flags.from_arguments(DecodeConfig, words, config=config)
    scratch = None
    if settled.out is None:
        scratch = tempfile.mkdtemp(prefix="jkv-")
        settled = dataclasses.replace(settled, out=scratch)
    directory = pathlib.Path(settled.out or "").expanduser()
    try:
        if rows is not None:
            settled = dataclasses.replace(settled, task=_write_task(directory, rows))
        # A screen that no one looks at but this object.
        screen = Screen(
            file=io.StringIO(), record=True, width=_WIDTH, force_terminal=True, force_jupyter=False, highlight=False
        )
        with status_line():
            summary = run(settled, AtHand(loaded), closing=screen)
        if summary is None:
            raise UserError("a notebook is one host", mend="on several run python -m jkv.decode")
        lines = (directory / SAMPLES).read_text(encoding="utf-8").splitlines()
        samples = sorted(map(json.loads, lines), key=lambda row: (_natural(row["id"]), row["sample"]))
        html = screen.export_html(inline_styles=True, code_format=_FRAME)
        decoded = Decoded(summary, samples, directory, html)
    except BaseException:
        if scratch is not None:
            shutil.rmtree(scratch, ignore_errors=True)
        raise
    if scratch is not None:
        weakref.finalize(decoded, shutil.rmtree, scratch, ignore_errors=True)
    return decoded


def _is_int8(loaded: Loaded) -> bool:
    return isinstance(loaded.model.embed.get_value(), QArray)


def _write_task(directory: pathlib.Path, rows: Any) -> str:
    """Problems given as rows, as the file that they would be."""
    path = directory / "task.jsonl"
    try:
        text = "".join(json.dumps(row) + "\n" for row in rows)
    except (TypeError, ValueError) as error:
        what = f"a row can't be written as JSON ({error})"
        raise UserError(what, where="task", mend='give rows as {"id": ..., "prompt": ..., "answer": ...}') from None
    directory.mkdir(parents=True, exist_ok=True)
    path.write_text(text, encoding="utf-8")
    return str(path)


def _natural(id: str) -> list[Any]:
    """q2 before q10."""
    return [int(part) if part.isdecimal() else part for part in re.split(r"(\d+)", id)]
