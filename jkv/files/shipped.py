"""The files that come with jkv: configs of commands, of published models, the published figure.

In a clone they lie in ``configs/``, in an installed wheel inside the package.
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
    """A file as it is named if it is there, else the shipped one of that name, as in 'configs/sweep_demo.yaml'.

    So the README's commands work in any directory. What is nowhere is returned as it came.
    """
    path = pathlib.Path(file).expanduser()
    shipped = CONFIGS / path.name
    named_so = path.parent in (pathlib.Path(), pathlib.Path("configs"))
    return str(shipped) if not path.exists() and named_so and shipped.is_file() else str(path)
