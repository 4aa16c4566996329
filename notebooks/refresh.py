"""Run the notebooks again and write their outputs: python notebooks/refresh.py [FILE.ipynb ...]

With --check nothing is run: it says which notebooks have outputs that their code didn't make, and fails if one has.
Each runs in an empty directory, on CPU and without the hub, as in continuous integration. The Colab badge and the
install cell are written anew from the repository's address in pyproject.toml, the one place that has it.
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
# Beyond Colab's CPUs jkv needs JAX's own TPU or GPU packages.
INSTALL = """\
# On Colab this installs jkv, for the accelerator that is there; where jkv is installed it does nothing.
import glob, importlib.util, shutil

if importlib.util.find_spec("jkv") is None:
    tpu = glob.glob("/dev/accel*") + glob.glob("/dev/vfio/[0-9]*")
    extra = "[tpu]" if tpu else "[cuda]" if shutil.which("nvidia-smi") else ""
    %pip install -q "jkv{{extra}} @ git+{address}\""""


def address() -> str:
    """The repository's address."""
    return tomllib.loads((HERE.parent / "pyproject.toml").read_text("utf-8"))["project"]["urls"]["Repository"]


def badge(name: str) -> str:
    """The line that opens a notebook in Colab."""
    path = address().removeprefix("https://github.com/")
    return f"[![Open in Colab]({BADGE})](https://colab.research.google.com/github/{path}/blob/main/notebooks/{name})"


def install_cell() -> str:
    """The first code cell."""
    return INSTALL.format(address=address())


def digest(notebook: Any) -> str:
    """Of all code: outputs belong to it."""
    code = [cell["source"] for cell in notebook["cells"] if cell["cell_type"] == "code"]
    return hashlib.sha256("\0".join(code).encode()).hexdigest()[:16]


def settle(notebook: Any, name: str) -> None:
    """The badge, the install cell, and no metadata but what a reader needs."""
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
    """Run all cells in an empty directory. Raises if one fails, or says something on stderr."""
    from nbclient import NotebookClient

    with tempfile.TemporaryDirectory() as directory:
        resources = {"metadata": {"path": directory}}
        client = NotebookClient(notebook, timeout=None, startup_timeout=600, resources=resources, record_timing=False)
        client.execute()
    for cell in notebook["cells"]:
        if cell["cell_type"] == "code":
            cell["outputs"] = [_small(output) for output in cell["outputs"] if not _empty(output)]
            said = [output["text"] for output in cell["outputs"] if output.get("name") == "stderr"]
            if said:
                raise RuntimeError(f"on stderr: {said[0]}")


def _empty(output: Any) -> bool:
    """A progress line that is gone."""
    return output.get("data") == {"text/plain": ""}


def _small(output: Any) -> Any:
    """Pictures with a palette, which these take well."""
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
    """What is wrong with a notebook's outputs, if anything: not run as a whole, or changed since."""
    cells = [cell for cell in notebook["cells"] if cell["cell_type"] == "code"]
    if [cell["execution_count"] for cell in cells] != list(range(1, len(cells) + 1)):
        return "was not run from top to bottom"
    return None if notebook["metadata"].get("jkv") == {"code": digest(notebook)} else "has code that was not run"


def check(paths: list[pathlib.Path]) -> None:
    """Leave with 1 if a notebook is stale."""
    found = {path.name: stale(nbformat.read(path, as_version=4)) for path in paths}
    for name, what in found.items():
        if what is not None:
            print(f"{name}: {what}; run python notebooks/refresh.py notebooks/{name}", file=sys.stderr)
    sys.exit(int(any(found.values())))


def main(names: list[str]) -> None:
    """All notebooks, or those named."""
    paths = [pathlib.Path(name) for name in names if name != "--check"] or sorted(HERE.glob("*.ipynb"))
    if "--check" in names:
        check(paths)
    # On a busy machine XLA says that it compiles slowly.
    os.environ |= {"JAX_PLATFORMS": "cpu", "HF_HUB_OFFLINE": "1", "TF_CPP_MIN_LOG_LEVEL": "3"}
    for path in paths:
        notebook: Any = nbformat.read(path, as_version=4)
        settle(notebook, path.name)
        started = time.perf_counter()
        execute(notebook)
        notebook["metadata"]["jkv"] = {"code": digest(notebook)}
        nbformat.write(notebook, path)
        print(f"{path.name}: {time.perf_counter() - started:.0f} s, {path.stat().st_size / 1000:.0f} kB")


if __name__ == "__main__":
    main(sys.argv[1:])
