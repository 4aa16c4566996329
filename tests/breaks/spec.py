"""What a break is, and how it finds its place in a tree: source by its content, tests by their names."""

import dataclasses
import pathlib
import re

SOURCES = ("jkv", "converters")
SUFFIXES = (".py", ".js")
_NAME = re.compile(r"<<(\w+)>>")


class NotFound(Exception):
    """A break's source or test isn't in the tree, or is there more than once."""


@dataclasses.dataclass(frozen=True)
class Break:
    """One deliberate mistake.

    Attributes:
        name: what is wrong then, in a few words joined by hyphens.
        room: which part of jkv it is in.
        edits: pairs (old, new) of source text. ``old`` must be in the tree exactly once. In it <<a>> stands for any
            identifier, which ``new`` may use. Of several pairs, for trees that differ, the first that is there counts.
        tests: who should notice, each as 'test_file::test_name' or 'test_file::test_name[parameters]', wherever in
            tests/ the file is. Several names joined by ' | ' are one test's names in different trees.
        slow: whether these tests are marked slow.
    """

    name: str
    room: str
    edits: tuple[tuple[str, str], ...]
    tests: tuple[str, ...]
    slow: bool = False

    @property
    def tier(self) -> str:
        """'plain' or 'slow', as the tests that notice."""
        return "slow" if self.slow else "plain"


@dataclasses.dataclass(frozen=True)
class Edit:
    """A break's change to one file: its text before and after."""

    file: pathlib.Path
    before: str
    after: str


class Tree:
    """A copy of the repository: its source files by content, its tests by name."""

    def __init__(self, root: pathlib.Path):
        self.root = root
        files = [p for top in SOURCES for p in sorted((root / top).rglob("*")) if p.suffix in SUFFIXES and p.is_file()]
        self.sources = {file: file.read_text("utf-8") for file in files}
        self.tests: dict[tuple[str, str], list[str]] = {}
        for file in sorted((root / "tests").rglob("test_*.py")):
            for name in _test_names(file.read_text("utf-8")):
                key = file.stem, name.rpartition("::")[2]
                self.tests.setdefault(key, []).append(f"{file.relative_to(root)}::{name}")

    def edit(self, it: Break) -> Edit:
        """The change that a break makes here. Raises NotFound if it has no place, or several."""
        for old, new in it.edits:
            pattern = _pattern(old)
            found = [(file, text, match) for file, text in self.sources.items() for match in pattern.finditer(text)]
            if not found:
                continue
            (file, text, match), *others = found
            if others:
                places = ", ".join(str(file.relative_to(self.root)) for file, *_ in found)
                raise NotFound(f"{it.name}: its text is not in one place but in {places}")
            filled = _NAME.sub(lambda name, match=match: match[name[1]], new)
            changed = text[: match.start()] + filled + text[match.end() :]
            if changed == text:
                raise NotFound(f"{it.name}: it changes nothing")
            if file.suffix == ".py":
                compile(changed, str(file), "exec")  # a break that can't be imported proves nothing
            return Edit(file, text, changed)
        raise NotFound(f"{it.name}: its text is nowhere")

    def node_ids(self, it: Break) -> list[str]:
        """The break's tests as pytest names them. Raises NotFound if one isn't there, or is there twice."""
        return [self._node_id(it, test) for test in it.tests]

    def _node_id(self, it: Break, names: str) -> str:
        for one in names.split(" | "):
            whole, bracket, parameters = one.partition("[")
            file, _, name = whole.partition("::")
            found = self.tests.get((file, name), [])
            if len(found) > 1:
                raise NotFound(f"{it.name}: {whole} is in {' and '.join(found)}")
            if found:
                return found[0] + bracket + parameters
        raise NotFound(f"{it.name}: there is no test {names}")


def _pattern(old: str) -> re.Pattern[str]:
    """``old`` as a regular expression: the same text, with one identifier for each <<name>>."""
    parts, seen = [], set()
    for index, part in enumerate(_NAME.split(old)):
        if index % 2 == 0:
            parts.append(re.escape(part))
        else:
            parts.append(f"(?P={part})" if part in seen else rf"(?P<{part}>\b[^\W\d]\w*\b)")
            seen.add(part)
    return re.compile("".join(parts))


def _test_names(text: str) -> list[str]:
    """Names of a file's test functions; 'Class::test' for those of a class."""
    names, inside = [], ""
    for line in text.splitlines():
        if found := re.match(r"class (Test\w*)", line):
            inside = found[1] + "::"
        elif found := re.match(r"(\s*)def (test_\w+)", line):
            names.append((inside if found[1] else "") + found[2])
    return names
