"""Makes breaks, one at a time, in a copy of the repository, and runs the tests that should notice."""

import contextlib
import dataclasses
import json
import os
import pathlib
import re
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence

from tests.breaks import forked
from tests.breaks.spec import Break, Edit, NotFound, Tree

COPIED = ("jkv", "converters", "tests", "configs", "docs", "notebooks", "pyproject.toml", "README.md")
SECONDS = 900  # that the tests of a break may take: a break can make a loop endless
_FAILED = 1  # pytest's exit code for failed tests
_MARKS = {"plain": "not slow", "slow": "slow or not slow"}
_FIRST = re.compile(r"^(?:FAILED|ERROR) (\S+::.+?)(?: - (.*))?$", re.MULTILINE)


@dataclasses.dataclass(frozen=True)
class Outcome:
    """What became of a break.

    Attributes:
        file: the changed file, below the repository's root.
        caught: whether a test failed.
        by: the first test that failed; what went wrong where none did.
        how: what that test said.
        seconds: that the tests took.
    """

    name: str
    room: str
    tier: str
    file: str
    caught: bool
    by: str
    how: str
    seconds: float


@contextlib.contextmanager
def copied(source: pathlib.Path) -> Iterator["Copy"]:
    """A copy of the repository in a directory of its own, gone after the block."""
    with tempfile.TemporaryDirectory(prefix="jkv-breaks-") as scratch:
        root = pathlib.Path(scratch) / "repository"
        root.mkdir()
        for name in COPIED:
            if (source / name).is_dir():
                shutil.copytree(source / name, root / name, ignore=shutil.ignore_patterns("__pycache__"))
            elif (source / name).exists():
                shutil.copy2(source / name, root / name)
        copy = Copy(root, pathlib.Path(scratch))
        try:
            yield copy
        finally:
            copy.close()


class Copy:
    """A copy of the repository in ``root``, whose tests import the copy's jkv and write into ``scratch``.

    Raises RuntimeError where they would import another jkv.
    """

    def __init__(self, root: pathlib.Path, scratch: pathlib.Path):
        self.root, self.tree, self._scratch = root, Tree(root), scratch
        # Wide, so that pytest's lines about failures are whole.
        self._environment = {**os.environ, "PYTHONPATH": str(root), "COLUMNS": "500"}
        imported = self._imported()
        if not all(pathlib.Path(file).is_relative_to(root) for file in imported):
            raise RuntimeError(f"the tests would import {', '.join(imported)} instead of the copy in {root}")
        self._server = subprocess.Popen(
            [sys.executable, "-P", str(pathlib.Path(forked.__file__))], cwd=root, env=self._environment, text=True,
            stdin=subprocess.PIPE, stdout=subprocess.PIPE,
        )  # fmt: skip

    def close(self) -> None:
        """End the process that runs pytest."""
        self._server.kill()
        self._server.communicate()

    def run(self, it: Break) -> Outcome:
        """Make the break, run its tests, and take it back."""
        edit = self.tree.edit(it)
        tests = self.tree.node_ids(it)
        with _made(edit):
            code, output, seconds = self._pytest(tests, it.tier, "-x")
        found = _FIRST.search(output)
        caught = code == _FAILED and found is not None
        by, how = (found[1], found[2] or "") if caught and found else (_reason(code, output), "")
        file = str(edit.file.relative_to(self.root))
        return Outcome(it.name, it.room, it.tier, file, caught, by, how[:200], round(seconds, 1))

    def clean(self, breaks: Sequence[Break]) -> str:
        """Run the tests of all breaks on the unbroken copy. Returns what went wrong, '' if all pass."""
        wrong = []
        for tier in dict.fromkeys(it.tier for it in breaks):
            tests = dict.fromkeys(test for it in breaks if it.tier == tier for test in self.tree.node_ids(it))
            code, output, _ = self._pytest(list(tests), tier)
            if code:
                wrong.append(f"{tier}: {_reason(code, output)}")
        return "\n".join(wrong)

    def _pytest(self, tests: Sequence[str], tier: str, *more: str) -> tuple[int, str, float]:
        """pytest's exit code, what it printed, and the seconds it took."""
        output = self._scratch / "output"
        arguments = [
            "-n0", "-q", "-rfE", "--assert=plain", "-p", "no:cacheprovider", "-o", "addopts=", "-m", _MARKS[tier],
            f"--basetemp={self._scratch / 'pytest'}", *more, *tests,
        ]  # fmt: skip
        job = {"arguments": arguments, "output": str(output), "seconds": SECONDS * (1 if more else 10)}
        assert self._server.stdin is not None
        assert self._server.stdout is not None
        started = time.monotonic()
        self._server.stdin.write(json.dumps(job) + "\n")
        self._server.stdin.flush()
        code = int(self._server.stdout.readline())
        return code, output.read_text("utf-8", errors="replace"), time.monotonic() - started

    def _imported(self) -> list[str]:
        """Where jkv and the converters come from, for a process that is started elsewhere."""
        code = "import converters, jkv; print(converters.__file__, jkv.__file__, sep='\\n')"
        return subprocess.run(
            [sys.executable, "-c", code], cwd=self.root.parent, env=self._environment, stdout=subprocess.PIPE,
            text=True, check=True,
        ).stdout.splitlines()  # fmt: skip


@contextlib.contextmanager
def _made(edit: Edit) -> Iterator[None]:
    """While the block runs, the file has the break in it."""
    _write(edit.file, edit.after)
    try:
        yield
    finally:
        _write(edit.file, edit.before)


def _write(file: pathlib.Path, text: str) -> None:
    """Write a source file, and forget its bytecode: Python compares times and sizes only."""
    file.write_text(text, "utf-8")
    for stale in (file.parent / "__pycache__").glob(f"{file.stem}.*.pyc"):
        stale.unlink()


def _reason(code: int, output: str) -> str:
    """Why pytest's exit code doesn't say that a test failed, or what failed of an unbroken copy."""
    said = {
        0: "no test failed",
        2: "the tests could not be collected",
        4: "pytest was called wrongly",
        5: "no test was selected",
        forked.TIMED_OUT: "out of time",
    }
    failed = [test for test, _ in _FIRST.findall(output)]
    last = next((line for line in reversed(output.splitlines()) if line.strip()), "")
    return said.get(code, f"exit code {code}") + (f": {', '.join(failed)}" if failed else "") + f" ({last.strip()})"


def misplaced(tree: Tree, breaks: Sequence[Break]) -> list[str]:
    """What keeps breaks from being made or noticed in a tree, a line each."""
    found = []
    for it in breaks:
        for look in (tree.edit, tree.node_ids):
            try:
                look(it)
            except (NotFound, SyntaxError) as error:
                found.append(str(error))
    return found
