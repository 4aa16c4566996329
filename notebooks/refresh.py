"""Run the notebooks and write their outputs into them: python notebooks/refresh.py [FILE.ipynb ...]

Each notebook runs in an empty directory, on the CPU and without the Hugging Face hub, as in continuous integration. Its
Colab badge and install cell are made from the repository's address in pyproject.toml. With --check nothing is run: it
prints which notebooks have outputs that are not those of their code, and exits with 1 if there are some.
"""

import base64
import hashlib
import io
import os
import pathlib
import sys
import tempfile
import time
import tomllib
from typing import Any

import nbformat

HERE = pathlib.Path(__file__).parent
BADGE = "https://colab.research.google.com/assets/colab-badge.svg"
# The install cell. On a TPU or GPU of Colab, jkv needs JAX's packages for that.
INSTALL = """\
# On Colab this installs jkv, for the accelerator that is there; where jkv is installed it does nothing.
import glob, importlib.util, shutil

if importlib.util.find_spec("jkv") is None:
    tpu = glob.glob("/dev/accel*") + glob.glob("/dev/vfio/[0-9]*")
    extra = "[tpu]" if tpu else "[cuda]" if shutil.which("nvidia-smi") else ""
    %pip install -q "jkv{{extra}} @ git+{address}\""""


def address() -> str:
    """The repository's address, from pyproject.toml."""
    return tomllib.loads((HERE.parent / "pyproject.toml").read_text("utf-8"))["project"]["urls"]["Repository"]


def badge(name: str) -> str:
    """The line of Markdown that opens the notebook of this file name in Colab."""
    path = address().removeprefix("https://github.com/")
    return f"[![Open in Colab]({BADGE})](https://colab.research.google.com/github/{path}/blob/main/notebooks/{name})"


def install_cell() -> str:
    """The text of the first code cell, which installs jkv on Colab."""
    return INSTALL.format(address=address())


def digest(notebook: Any) -> str:
    """A hash of all code of a notebook (nbformat's NotebookNode): outputs belong to the code of one hash."""
    code = [cell["source"] for cell in notebook["cells"] if cell["cell_type"] == "code"]
    return hashlib.sha256("\0".join(code).encode()).hexdigest()[:16]


def write_header(notebook: Any, name: str) -> None:
    """Write a notebook's badge and install cell, and leave no metadata but what Jupyter needs to open it.

    Args:
        notebook: changed in place.
        name: of its file.
    """
    title, install = notebook["cells"][:2]
    title["source"] = title["source"].partition("\n")[0] + "\n\n" + badge(name)
    install["source"] = install_cell()
    for number, cell in enumerate(notebook["cells"]):
        cell["id"], cell["metadata"] = f"cell-{number:02d}", {}
    notebook["metadata"] = {
        "kernelspec": {"display_name": "Python 3", "language": "python", "name": "python3"},
        "language_info": {"name": "python"},
    }


def execute(notebook: Any) -> None:
    """Run all cells in an empty directory and replace their outputs.

    Raises:
        nbclient.exceptions.CellExecutionError: a cell failed.
        RuntimeError: a cell printed something to stderr.
    """
    from nbclient import NotebookClient

    with tempfile.TemporaryDirectory() as directory:
        resources = {"metadata": {"path": directory}}
        client = NotebookClient(notebook, timeout=None, startup_timeout=600, resources=resources, record_timing=False)
        client.execute()
    for cell in notebook["cells"]:
        if cell["cell_type"] == "code":
            cell["outputs"] = [_small(output) for output in cell["outputs"] if not _empty(output)]
            errors = [output["text"] for output in cell["outputs"] if output.get("name") == "stderr"]
            if errors:
                raise RuntimeError(f"on stderr: {errors[0]}")


def _empty(output: Any) -> bool:
    """Whether nothing is left of an output: a progress line that was removed."""
    return output.get("data") == {"text/plain": ""}


def _small(output: Any) -> Any:
    """An output whose picture, if it has one, is at most 1400 pixels wide and has 64 colors: notebooks stay small."""
    from PIL import Image

    if (png := output.get("data", {}).get("image/png")) is not None:
        image = Image.open(io.BytesIO(base64.b64decode(png))).convert("RGB")
        if image.width > 1400:
            image = image.resize((1400, round(image.height * 1400 / image.width)), Image.Resampling.LANCZOS)
        packed = io.BytesIO()
        image.quantize(64, dither=Image.Dither.NONE).save(packed, "PNG", optimize=True)
        output["data"]["image/png"] = base64.b64encode(packed.getvalue()).decode()
    return output


def stale(notebook: Any) -> str | None:
    """What is wrong with a notebook's outputs, if anything: not run from top to bottom, or code that changed since."""
    cells = [cell for cell in notebook["cells"] if cell["cell_type"] == "code"]
    if [cell["execution_count"] for cell in cells] != list(range(1, len(cells) + 1)):
        return "was not run from top to bottom"
    return None if notebook["metadata"].get("jkv") == {"code": digest(notebook)} else "has code that was not run"


def check(paths: list[pathlib.Path]) -> None:
    """Print which notebooks have stale outputs, and exit: with 1 if there are some, else with 0."""
    found = {path.name: stale(nbformat.read(path, as_version=4)) for path in paths}
    for name, what in found.items():
        if what is not None:
            print(f"{name}: {what}; run python notebooks/refresh.py notebooks/{name}", file=sys.stderr)
    sys.exit(int(any(found.values())))


def main(names: list[str]) -> None:
    """Run or check notebooks.

    Args:
        names: their files, all of this directory if there are none; and perhaps --check.
    """
    paths = [pathlib.Path(name) for name in names if name != "--check"] or sorted(HERE.glob("*.ipynb"))
    if "--check" in names:
        check(paths)
    # The last variable silences XLA's warning that it compiles slowly, which it prints on a busy machine.
    os.environ |= {"JAX_PLATFORMS": "cpu", "HF_HUB_OFFLINE": "1", "TF_CPP_MIN_LOG_LEVEL": "3"}
    for path in paths:
        notebook: Any = nbformat.read(path, as_version=4)
        write_header(notebook, path.name)
        started = time.perf_counter()
        execute(notebook)
        notebook["metadata"]["jkv"] = {"code": digest(notebook)}
        nbformat.write(notebook, path)
        print(f"{path.name}: {time.perf_counter() - started:.0f} s, {path.stat().st_size / 1000:.0f} kB")


if __name__ == "__main__":
    main(sys.argv[1:])
