"""Labels and hidden states of traces on disk: one safetensors file a trace, written whole or not at all."""

import dataclasses
import pathlib

import ml_dtypes  # noqa: F401  # makes numpy know bfloat16
import numpy as np
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save_file

from jkv.errors import UserError
from jkv.files.whole import remove_scratch, replacing
from jkv.predictor_training.labels import TraceLabels
from jkv.predictor_training.traces import Trace


@dataclasses.dataclass(frozen=True)
class Labelled:
    """What is stored of a trace, for its n thinking tokens.

    Attributes:
        answer: label answer, [n].
        future: label future, [n].
        hidden: hidden states, [n, D]; None where only labels are stored.
    """

    answer: np.ndarray
    future: np.ndarray
    hidden: np.ndarray | None


class Store:
    """A directory of labelled traces.

    Args:
        path: the directory, made if it isn't there. What a killed process left half-written in it is removed.
        hidden: whether hidden states are stored beside the labels.
    """

    def __init__(self, path: pathlib.Path, *, hidden: bool) -> None:
        self.path, self.hidden = path, hidden
        path.mkdir(parents=True, exist_ok=True)
        remove_scratch(path)

    def file(self, trace: Trace) -> pathlib.Path:
        """Where a trace's labels are. Characters of its id that a file's name may not have are replaced."""
        safe = "".join(c if c.isalnum() or c in "-_" else f"%{ord(c):x}" for c in trace.id)[:120]
        return self.path / f"{safe}.{trace.sample}.safetensors"

    def __contains__(self, trace: Trace) -> bool:
        return self.file(trace).exists()

    def add(self, trace: Trace, labels: TraceLabels) -> None:
        """Store what belongs to a trace's thinking tokens.

        Args:
            trace: the trace.
            labels: of all of its tokens.

        Raises:
            UserError: the file can't be written.
        """
        tensors = {"answer": labels.answer, "future": labels.future}
        if self.hidden:
            tensors["hidden"] = labels.hidden
        cut = {name: np.ascontiguousarray(np.asarray(x)[trace.thinking]) for name, x in tensors.items()}
        path = self.file(trace)
        try:
            with replacing(path) as scratch:
                save_file(cut, scratch)
        except Exception as error:  # safetensors wraps OSError in an exception of its own
            mend = "make room, or give --hidden recompute; the same command goes on"
            raise UserError(f"can't be written ({error})", where=str(path), mend=mend) from None

    def read(self, trace: Trace) -> Labelled:
        """What ``add`` has stored of a trace.

        Raises:
            UserError: the file can't be read, or is that of another trace.
        """
        path, n = self.file(trace), trace.think_end - trace.think_start - 1
        try:
            with safe_open(path, framework="np") as file:
                found = {name: file.get_tensor(name) for name in ("answer", "future")}
                hidden = file.get_tensor("hidden") if self.hidden else None
        except (SafetensorError, OSError) as error:
            raise UserError(f"can't be read ({error})", where=str(path), mend="delete it; it is made again") from None
        if any(x.shape[:1] != (n,) for x in (*found.values(), *([] if hidden is None else [hidden]))):
            raise UserError("is of another trace", where=str(path), mend="delete it; it is made again")
        return Labelled(found["answer"], found["future"], hidden)
