"""The rooms of pyproject.toml: each imports only from those below it, none in a circle.

The contract is import-linter's: ``lint-imports`` checks it too, and names the import that breaks it.
"""

import pathlib
import tomllib

import grimp
import pytest
from importlinter.contracts.layers import LayersContract

ROOT = pathlib.Path(__file__).parents[1]
SETTINGS = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))["tool"]["importlinter"]
(CONTRACT,) = SETTINGS["contracts"]
LAYERS = [[room.strip() for room in line.split("|")] for line in CONTRACT["layers"]]
# What the sketch of the rooms came to. Fewer are better.
MOST_FLOORS, MOST_ARROWS, MOST_LINES = 12, 145, 400


@pytest.fixture
def graph() -> grimp.ImportGraph:
    """Every import of jkv and converters, those within functions and for type checking included."""
    return grimp.build_graph(*SETTINGS["root_packages"], cache_dir=None)


def kept(graph: grimp.ImportGraph) -> bool:
    options = {"name": CONTRACT["name"], "type": "layers", "layers": CONTRACT["layers"]}
    contract = LayersContract(CONTRACT["name"], {"root_packages": SETTINGS["root_packages"]}, options)
    return contract.check(graph, verbose=False).kept


def room(module: str) -> str:
    """The room a module is in: a folder of jkv, or one of its files; converters is one."""
    parts = module.split(".")
    return parts[0] if parts[0] != "jkv" else ".".join(parts[:2])


def test_every_room_has_a_floor_and_imports_run_down(graph):
    assert {room(module) for module in graph.modules} - {"jkv"} == {name for line in LAYERS for name in line}
    assert kept(graph)
    assert len(LAYERS) <= MOST_FLOORS


@pytest.mark.parametrize(
    ("importer", "imported"),
    [
        ("jkv.ops.rows", "jkv.engine.step"),  # up
        ("jkv.policies.base", "jkv.distributed.mesh"),  # sideways
        ("converters.fill", "jkv.load"),  # from one package into another
        ("jkv.errors", "jkv.run.decode"),  # from the lowest floor nearly to the top
    ],
)
def test_a_broken_layer_is_seen(graph, importer, imported):
    graph.add_import(importer=importer, imported=imported)
    assert not kept(graph)


def test_rooms_have_few_arrows(graph):
    arrows = {
        (room(module), room(imported))
        for module in graph.modules - {"jkv"}
        for imported in graph.find_modules_directly_imported_by(module)
        if room(module) != room(imported)
    }
    assert len(arrows) <= MOST_ARROWS, len(arrows)


def test_within_a_room_modules_import_in_no_circle(graph):
    for module in graph.modules:
        if module in ("jkv", "converters"):
            continue
        others = graph.find_upstream_modules(module) if len(module.split(".")) > 2 else set()
        assert module not in {m for other in others for m in graph.find_modules_directly_imported_by(other)}, module


def test_files_are_small_and_named_for_what_they_hold():
    for path in [*ROOT.glob("jkv/**/*.py"), *ROOT.glob("converters/*.py"), *ROOT.glob("tests/**/*.py")]:
        assert len(path.read_text("utf-8").splitlines()) <= MOST_LINES, path
        assert path.stem not in ("util", "utils", "misc", "helper", "helpers", "common"), path
