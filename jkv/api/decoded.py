"""``jkv.decode(...)``: a run from Python, and what it returns."""

import dataclasses
import io
import json
import os
import pathlib
import re
import shutil
import tempfile
import weakref
from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from qwix import QArray

from jkv.config.decode import DecodeConfig
from jkv.errors import UserError
from jkv.load import Loaded
from jkv.models.quantized import INT8
from jkv.run.closing import summary_table
from jkv.run.decode import run
from jkv.run.directory import read_samples
from jkv.run.opening import AtHand
from jkv.terminal import flags
from jkv.terminal.notebook_line import status_line
from jkv.terminal.screen import Screen

if TYPE_CHECKING:
    from jkv.report.view.shown import View

_WIDTH = 110  # characters of a line in a notebook
_FRAME = '<pre style="white-space: pre; overflow-x: auto; line-height: 1.25">{code}</pre>'
# Arguments that a loaded model has settled.
_OF_LOADING = ("dtype", "weights", "mesh")


@dataclasses.dataclass(frozen=True, repr=False)
class Decoded:
    """A finished run: a sequence of its samples.

    Attributes:
        summary: the contents of summary.json.
        samples: the lines of samples.jsonl (id, text, answer, correct, token_ids, ...), sorted by id and number.
        directory: where the run's files are. Without ``out`` they are deleted together with this object.
        html: one completion with its evicted tokens marked, and the closing table, as a notebook shows them.
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
        with screen.capture() as text:
            screen.print(summary_table(self.summary))
        return text.get().rstrip()

    def _repr_html_(self) -> str:
        return self.html

    def view(self, *beside: str | os.PathLike[str], **options: Any) -> "View":
        """`jkv.view` of this run.

        Args:
            beside: more runs of the same task, shown side by side.
            options: as for `jkv.view`.

        Raises:
            UserError: as `jkv.view` does; the run must have been made with ``trace=True``.
        """
        from jkv.api.viewed import view

        return view(self, *beside, **options)


def decode_from_python(
    model: str | os.PathLike[str] | Loaded | None, config: str | None, arguments: Mapping[str, Any]
) -> Decoded:
    """Run ``python -m jkv.decode``, in this process.

    Args:
        model: a name, a directory, a hub id or a loaded model; None for the config's.
        config: a YAML file of arguments.
        arguments: values by field of DecodeConfig; they override the file. The task may also be a list of rows.

    Raises:
        UserError: anything that a user can mend.
    """
    loaded = model if isinstance(model, Loaded) else None
    arguments = dict(arguments)
    if loaded is not None:
        for name in _OF_LOADING:
            if arguments.get(name) is not None:
                raise UserError("the model is loaded already", where=name, mend=f"give {name} with the model's name")
        arguments |= {"model": loaded.name, "weights": INT8 if _is_int8(loaded) else None}
    elif model is not None:
        arguments["model"] = model
    rows = arguments.pop("task") if isinstance(arguments.get("task"), list | tuple) else None
    run_config = flags.from_arguments(DecodeConfig, arguments, config=config)
    scratch = None
    if run_config.out is None:
        scratch = tempfile.mkdtemp(prefix="jkv-")
        run_config = dataclasses.replace(run_config, out=scratch)
    directory = pathlib.Path(run_config.out or "").expanduser()
    try:
        if rows is not None:
            run_config = dataclasses.replace(run_config, task=_write_task(directory, rows))
        # Prints nowhere: what it records becomes ``html``.
        screen = Screen(
            file=io.StringIO(), record=True, width=_WIDTH, force_terminal=True, force_jupyter=False, highlight=False
        )
        with status_line():
            summary = run(run_config, AtHand(loaded), screen=screen)
        if summary is None:
            raise UserError("jkv.decode runs on one host", mend="on several run python -m jkv.decode")
        samples = sorted(read_samples(directory), key=lambda row: (_natural(row["id"]), row["sample"]))
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


def _write_task(directory: pathlib.Path, rows: Sequence[Any]) -> str:
    """Write problems that were given as rows to a file. Returns its path."""
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
    """A key by which q2 is sorted before q10."""
    return [int(part) if part.isdecimal() else part for part in re.split(r"(\d+)", id)]
