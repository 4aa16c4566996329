"""Typed reading of one JSON object: each value checked, each error names field, value and file."""

import dataclasses
import math
from typing import Any

from jkv.errors import UserError

_LARGEST = 2**31 - 1  # sizes and token ids are 32-bit on the device


@dataclasses.dataclass(frozen=True)
class Fields:
    """``data`` as read from ``where``; ``prefix`` is put before a field's name in messages ('rope_scaling.')."""

    data: dict[str, Any]
    where: str
    prefix: str = ""

    def error(self, name: str, expected: str, mend: str = "") -> UserError:
        """'hidden_size is "64", expected an integer', or '... is missing'."""
        if name not in self.data:
            return UserError(f"{self.prefix}{name} is missing, expected {expected}", where=self.where, mend=mend)
        shown = _short(self.data[name])
        return UserError(f"{self.prefix}{name} is {shown}, expected {expected}", where=self.where, mend=mend)

    def present(self, name: str) -> bool:
        """Whether the field is there and isn't null."""
        return self.data.get(name) is not None

    def integer(self, name: str, default: int | None = None, least: int = 1, most: int = _LARGEST) -> int:
        """An integer in [least, most]; ``default`` when the field is absent."""
        value = self.data.get(name, default)
        if isinstance(value, bool) or not isinstance(value, int) or not least <= value <= most:
            raise self.error(name, f"an integer from {least} to {most}")
        return value

    def number(self, name: str, default: float | None = None) -> float:
        """A positive finite number; ``default`` when the field is absent."""
        value = self.data.get(name, default)
        if isinstance(value, bool) or not isinstance(value, int | float) or value <= 0 or not _finite(value):
            raise self.error(name, "a positive number")
        return float(value)

    def boolean(self, name: str, default: bool) -> bool:
        """true or false; ``default`` when the field is absent."""
        value = self.data.get(name, default)
        if not isinstance(value, bool):
            raise self.error(name, "true or false")
        return value

    def text(self, name: str, default: str | None = None) -> str:
        """A string; ``default`` when the field is absent."""
        value = self.data.get(name, default)
        if not isinstance(value, str):
            raise self.error(name, "a string")
        return value

    def object(self, name: str) -> "Fields | None":
        """A nested object, None when the field is absent, null or empty."""
        value = self.data.get(name)
        if not value and not isinstance(value, bool | int | float | str | list):
            return None
        if not isinstance(value, dict):
            raise self.error(name, "an object or null")
        return Fields(value, self.where, f"{self.prefix}{name}.")

    def ids(self, name: str, vocab_size: int) -> tuple[int, ...]:
        """Token ids: an integer, a list of integers, or null; each below ``vocab_size``."""
        value = self.data.get(name)
        listed = value if isinstance(value, list) else [] if value is None else [value]
        for token in listed:
            if isinstance(token, bool) or not isinstance(token, int) or not 0 <= token < vocab_size:
                raise self.error(name, f"token ids from 0 to {vocab_size - 1} (vocab_size is {vocab_size})")
        return tuple(dict.fromkeys(listed))


def _finite(value: int | float) -> bool:
    try:
        return math.isfinite(float(value))
    except OverflowError:
        return False


def _short(value: Any) -> str:
    import json

    try:
        text = json.dumps(value)
    except ValueError:  # an integer of more digits than Python prints
        text = f"a {type(value).__name__}"
    return text if len(text) <= 60 else text[:57] + "..."
