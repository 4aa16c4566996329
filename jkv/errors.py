"""The error that a user can mend: one line that says what is wrong, where, and how to mend it."""


class UserError(Exception):
    """Bad input. Commands print it as one line, without a traceback, and exit with code 2.

    Attributes:
        what: what is wrong, naming the value.
        where: the file, flag or field that is wrong; empty if there is none to name.
        mend: what the user can do about it; empty if there is nothing to advise.
    """

    def __init__(self, what: str, *, where: str = "", mend: str = ""):
        self.what, self.where, self.mend = what, where, mend
        parts = [f"{where}: {what}" if where else what]
        if mend:
            parts.append(mend)
        super().__init__(" ".join("; ".join(parts).split()))

    def _render_traceback_(self) -> list[str]:
        """The lines that IPython shows in place of a traceback."""
        return [f"UserError: {self}"]
