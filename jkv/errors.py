"""The error that a user can mend: one line that says what is wrong, where, and how to mend it."""


class UserError(Exception):
    """Bad input. Commands print it as one line and exit with code 2.

    what: what is wrong, naming the value.  where: the file, flag or field.  mend: what to do about it.
    """

    def __init__(self, what: str, *, where: str = "", mend: str = ""):
        self.what, self.where, self.mend = what, where, mend
        parts = [f"{where}: {what}" if where else what]
        if mend:
            parts.append(mend)
        super().__init__(" ".join("; ".join(parts).split()))

    def _render_traceback_(self) -> list[str]:
        """What IPython shows instead of a traceback: the line."""
        return [f"UserError: {self}"]
