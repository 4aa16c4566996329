"""The configuration of ``python -m jkv.plan``: decode's words that change the program, and where it is to run."""

import dataclasses
import pathlib
from typing import Any, Literal

from jkv.config import ModelConfig
from jkv.errors import UserError
from jkv.policies import Granularity
from jkv.run_config import HELP as DECODE_HELP
from jkv.run_config import DecodeConfig
from jkv.shipped import MODELS, OF_HUB

PUBLISHED_WIDTHS = (8192, 2048)  # of dynts's published predictors, whatever the model's D


def shipped() -> list[str]:
    """Names of the models whose configs come with jkv."""
    return sorted(path.stem for path in MODELS.glob("*.json"))


@dataclasses.dataclass(frozen=True)
class PlanConfig:
    """What to compile, and for which devices."""

    model: str = "r1-llama-8b"
    topology: str = "v5e:2x4"
    mesh: str = "data=1,model=8"
    batch_size: int = 32
    policy: str = "dynts"
    budget: int | None = None
    window: int | None = None
    ratio: float | None = None
    retain: int | None = None
    sinks: int | None = None
    pin_prompt: bool | None = None
    granularity: Granularity = "shared"
    options: dict[str, Any] | None = None
    register: list[str] | None = None
    dtype: Literal["float32", "bfloat16"] = "bfloat16"
    weights: Literal["int8"] | None = None
    kv: Literal["int8"] | None = None
    temperature: float = 0.6
    top_p: float = 0.95
    top_k: int = 20
    implementation: Literal["auto", "xla", "pallas"] = "auto"
    max_batch: bool = True
    json: bool = False

    def decode(self) -> DecodeConfig:
        """The words that `python -m jkv.decode` has, too, checked as it does."""
        if self.budget is None:
            raise UserError(
                "is missing", where="--budget", mend="give the KV slots of a row (full: its longest sequence)"
            )
        common = {field.name for field in dataclasses.fields(DecodeConfig)} - {"mesh"}
        words = {field.name: getattr(self, field.name) for field in dataclasses.fields(self) if field.name in common}
        return DecodeConfig(**words)

    def model_config(self) -> ModelConfig:
        """The config that ``model`` names. Raises UserError if there is none."""
        return model_config(self.model)


def model_config(name: str) -> ModelConfig:
    """The config of a shipped model, a demo, or a directory, without its weights. Raises UserError if there is none."""
    from converters.config import from_hf, read_config
    from converters.files import read_json
    from jkv.load import DEMOS, locate

    known = OF_HUB.get(name, name)
    if known in shipped():
        path = MODELS / f"{known}.json"
        return from_hf(read_json(path), where=str(path))
    if name not in DEMOS and not pathlib.Path(name).expanduser().is_dir():
        tried = f"not one of {', '.join((*shipped(), *DEMOS))}, not a directory"
        raise UserError(f"no such model: {name!r} is {tried}", where="--model")
    return read_config(locate(name))


HELP = {
    **{field.name: DECODE_HELP[field.name] for field in dataclasses.fields(PlanConfig) if field.name in DECODE_HELP},
    "model": f"{', '.join(shipped())}, demo-llama, demo-qwen, or a Hugging Face or converted directory",
    "topology": "the TPU: v5e:2x4, v6e:2x2, v5p:2x2x1 and the like",
    "mesh": "its devices as data=ROWS,model=HEADS; auto chooses",
    "budget": "KV slots a row owns (full: the longest sequence)",
    "dtype": "of weights, activations and KV buffer",
    "max_batch": "also search the largest batch that fits, which compiles a few times more",
    "json": "print one JSON object instead of a table",
}
