"""The notebooks as they are committed: how they open, what they use, that outputs are small and clean.

That they run is for `pytest --nbmake notebooks`, that outputs are those of the code for `python notebooks/refresh.py
--check`, both with the extra `notebooks`.
"""

import ast
import json
import pathlib
import re
import tomllib
from typing import Any

import pytest
import yaml

ROOT = pathlib.Path(__file__).parents[1]
NOTEBOOKS = sorted((ROOT / "notebooks").glob("*.ipynb"))
ADDRESS = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))["project"]["urls"]["Repository"]


def text(value: Any) -> str:
    """A notebook's text, which may be a list of lines."""
    return value if isinstance(value, str) else "".join(value)


@pytest.fixture(params=NOTEBOOKS, ids=lambda path: path.stem)
def notebook(request) -> dict[str, Any]:
    """Its JSON, and its name."""
    assert request.param.stat().st_size < 400_000
    return {**json.loads(request.param.read_text("utf-8")), "name": request.param.name}


def code_cells(notebook: dict[str, Any]) -> list[dict[str, Any]]:
    return [cell for cell in notebook["cells"] if cell["cell_type"] == "code"]


def test_there_are_five():
    assert [path.stem[:2] for path in NOTEBOOKS] == ["01", "02", "03", "04", "05"]


def test_it_opens_with_a_badge_and_one_install_cell(notebook):
    title, install, *rest = notebook["cells"]
    path = ADDRESS.removeprefix("https://github.com/")
    link = f"https://colab.research.google.com/github/{path}/blob/main/notebooks/{notebook['name']}"
    assert text(title["source"]).startswith("# ")
    assert f"]({link})" in text(title["source"])
    assert f'@ git+{ADDRESS}"' in text(install["source"])
    assert not install["outputs"], "nothing is installed where jkv is"
    assert not any("install -" in text(cell["source"]) for cell in rest if cell["cell_type"] == "code")


def test_outputs_are_clean(notebook):
    for cell in code_cells(notebook):
        for output in cell["outputs"]:
            assert output["output_type"] != "error"
            assert output.get("name") != "stderr"
            shown = json.dumps({**output.get("data", {}), "image/png": "", "text": output.get("text", "")})
            assert not re.search(r"/(?:work|root|home|tmp|Users|content)/|Warning|ETA|it/s", shown), shown[:300]
            assert output.get("data") != {"text/plain": ""}


def test_only_the_public_names_are_used(notebook):
    for cell in code_cells(notebook)[1:]:
        for node in ast.walk(ast.parse(text(cell["source"]))):
            if isinstance(node, ast.ImportFrom) and (node.module or "").split(".")[0] == "jkv":
                assert node.module == "jkv.policies"
            if isinstance(node, ast.Import):
                assert not any(name.name.startswith("jkv.") for name in node.names)
            if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name) and node.value.id == "jkv":
                assert node.attr in {"load", "decode", "sweep", "register", "view", "train_predictor"}


def test_the_policy_has_forty_lines():
    (path,) = (p for p in NOTEBOOKS if p.stem.startswith("03"))
    (cell,) = (
        cell for cell in code_cells(json.loads(path.read_text("utf-8"))) if "@jkv.register" in text(cell["source"])
    )
    assert len(text(cell["source"]).splitlines()) <= 40


def test_the_address_is_the_same_everywhere():
    citation = yaml.safe_load((ROOT / "CITATION.cff").read_text("utf-8"))
    assert citation["repository-code"] == ADDRESS
    namespace: dict[str, Any] = {}
    exec((ROOT / "jkv" / "__init__.py").read_text("utf-8"), namespace)
    assert str(citation["version"]) == namespace["__version__"]
