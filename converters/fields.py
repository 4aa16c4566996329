"""Reading the fields of a JSON object: every value is checked, and an error names the field, its value and the file."""

import dataclasses
import math
from typing import Any

from jkv.errors import UserError

_LARGEST = 2**31 - 1  # sizes and token ids are 32-bit on the device


@dataclasses.dataclass(frozen=True)
class Fields:
    """A JSON object whose fields are checked as they are read.

    Attributes:
        data: the object.
        where: the file that it comes from, for messages.
        prefix: put before a field's name in messages, as 'rope_scaling.'.
    """

    data: dict[str, Any]
    where: str
    prefix: str = ""

    def error(self, name: str, expected: str, mend: str = "") -> UserError:
        """The error for a field, as 'hidden_size is "64", expected an integer'; or that it is missing.

        Args:
            name: the field.
            expected: what its value should have been.
            mend: what the user can do, if that is more than giving another value.
        """
        if name not in self.data:
            return UserError(f"{self.prefix}{name} is missing, expected {expected}", where=self.where, mend=mend)
        shown = _short(self.data[name])
        return UserError(f"{self.prefix}{name} is {shown}, expected {expected}", where=self.where, mend=mend)

    def present(self, name: str) -> bool:
        """Whether the field is there and isn't null."""
        return self.data.get(name) is not None

    def integer(self, name: str, default: int | None = None, least: int = 1, most: int = _LARGEST) -> int:
        """An integer from ``least`` to ``most``; ``default`` if the field is absent. Raises UserError otherwise."""
        value = self.data.get(name, default)
        if isinstance(value, bool) or not isinstance(value, int) or not least <= value <= most:
            raise self.error(name, f"an integer from {least} to {most}")
        return value

    def number(self, name: str, default: float | None = None) -> float:
        """A positive, finite number; ``default`` if the field is absent. Raises UserError otherwise."""
        value = self.data.get(name, default)
        if isinstance(value, bool) or not isinstance(value, int | float) or value <= 0 or not _finite(value):
            raise self.error(name, "a positive number")
        return float(value)

    def boolean(self, name: str, default: bool) -> bool:
        """true or false; ``default`` if the field is absent. Raises UserError otherwise."""
        value = self.data.get(name, default)
        if not isinstance(value, bool):
            raise self.error(name, "true or false")
        return value

    def text(self, name: str, default: str | None = None) -> str:
        """A string; ``default`` if the field is absent. Raises UserError otherwise."""
        value = self.data.get(name, default)
        if not isinstance(value, str):
            raise self.error(name, "a string")
        return value

    def object(self, name: str) -> "Fields | None":
        """A nested object; None if the field is absent, null or empty. Raises UserError otherwise."""
        value = self.data.get(name)
        if not value and not isinstance(value, bool | int | float | str | list):
            return None
        if not isinstance(value, dict):
            raise self.error(name, "an object or null")
        return Fields(value, self.where, f"{self.prefix}{name}.")

    def ids(self, name: str, vocab_size: int) -> tuple[int, ...]:
        """Token ids, without duplicates: the field is an integer, a list of integers, or null or absent for none.

        Raises UserError otherwise, and for an id that isn't below ``vocab_size``.
        """
        value = self.data.get(name)
        listed = value if isinstance(value, list) else [] if value is None else [value]
        for token in listed:
            if isinstance(token, bool) or not isinstance(token, int) or not 0 <= token < vocab_size:
                raise self.error(name, f"token ids from 0 to {vocab_size - 1} (vocab_size is {vocab_size})")
        return tuple(dict.fromkeys(listed))


def _finite(value: int | float) -> bool:
    """Whether a number is finite as a float: JSON's integers may be too large for that."""
    try:
        return math.isfinite(float(value))
    except OverflowError:
        return False


def _short(value: Any) -> str:
    """A value as JSON, cut to 60 characters."""
    import json

    try:
        text = json.dumps(value)
    except ValueError:  # an integer with more digits than Python converts to text
        text = f"a {type(value).__name__}"
    return text if len(text) <= 60 else text[:57] + "..."
