"""The command's fixtures, for policies that are tested through it."""

from tests.command.conftest import run as run
from tests.command.conftest import task as task
from tests.command.conftest import tiny as tiny
from tests.support.compilation import quick_compilation as quick_compilation


def pytest_collection_modifyitems(items) -> None:
    """All tests of a policy under a rule, one after another: they share its compiled engine, which is then let go."""
    mine = [place for place, item in enumerate(items) if item.path.name == "test_properties.py"]
    case = lambda item: str(item.callspec.params.get("case", "")) if hasattr(item, "callspec") else ""
    for place, item in zip(mine, sorted((items[place] for place in mine), key=case), strict=True):
        items[place] = item
