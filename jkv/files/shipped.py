"""The files that come with jkv: configs of commands and of published models, and a published figure's numbers.

In a clone they are in ``configs/``, in an installed wheel inside the package.
"""

import pathlib

_PACKAGE = pathlib.Path(__file__).parents[1]
_INSTALLED = _PACKAGE / "configs"
CONFIGS = _INSTALLED if (_INSTALLED / "models").is_dir() else _PACKAGE.parent / "configs"
MODELS = CONFIGS / "models"
FIGURES = CONFIGS / "figures"
# Published models whose config comes with jkv, by their id on the hub.
OF_HUB = {
    f"deepseek-ai/DeepSeek-R1-Distill-{family}-{size}": f"r1-{family.lower()}-{size.lower()}"
    for family, size in (
        ("Qwen", "1.5B"), ("Qwen", "7B"), ("Qwen", "14B"), ("Qwen", "32B"), ("Llama", "8B"), ("Llama", "70B"),
    )
}  # fmt: skip


def find(file: str) -> str:
    """A file, or the shipped one of that name if it isn't there. So the README's commands work in any directory.

    Args:
        file: a path; only one without a directory, or in ``configs/``, can stand for a shipped file.

    Returns:
        The path of the file that was found, else ``file`` with ~ expanded.
    """
    path = pathlib.Path(file).expanduser()
    shipped = CONFIGS / path.name
    named_so = path.parent in (pathlib.Path(), pathlib.Path("configs"))
    return str(shipped) if not path.exists() and named_so and shipped.is_file() else str(path)
