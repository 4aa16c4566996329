"""The configuration of ``python -m jkv.train_predictor``: every flag, its default and its meaning."""

import dataclasses
from typing import Literal

from jkv.config.decode import check_mesh_text
from jkv.errors import UserError

DEMO_LIMIT = 1000


@dataclasses.dataclass(frozen=True)
class TrainConfig:
    """One predictor. Defaults of the training are DynTS's published recipe (arXiv:2601.18383)."""

    model: str = "demo-llama"
    """demo-llama, demo-qwen, a Hugging Face or converted directory, or a hub id"""
    dtype: Literal["float32", "bfloat16"] | None = None
    """of the model (default: float32 on CPU, bfloat16 elsewhere); the predictor is trained in float32"""
    task: str = "demo"
    """demo, or FILE.jsonl with answers; not one you evaluate on"""
    out: str | None = None
    """directory of traces, labels, checkpoints and the predictor (default: runs/predictor-MODEL)"""
    data: str | None = None
    """another --out, whose traces and labels are used instead of making new ones"""
    # traces
    limit: int | None = None
    """problems at most (default: all; demo: 1000)"""
    samples: int = 1
    """completions a problem"""
    batch_size: int = 16
    """rows decoded together"""
    max_new_tokens: int | None = None
    """new tokens a completion at most (default: 16384; demo: 320)"""
    temperature: float = 0.6
    """of the completions; 0 is greedy"""
    top_p: float = 0.95
    """nucleus of the completions; 1 switches it off"""
    top_k: int = 20
    """the likeliest tokens only, after top-p; 0 switches it off"""
    seed: int = 1
    """of all random draws; of the demo's problems, too (0 are the ones it is evaluated on)"""
    max_length: int = 18_000
    """longer traces are left out; tokens, prompt included"""
    # labels
    label: Literal["answer", "future"] = "answer"
    """what importance is: attention from the answer, or from all that comes more than --horizon tokens later"""
    horizon: int = 128
    """tokens after which attention counts for label future"""
    layer: int | None = None
    """whose attention input the predictor reads (default: the final norm's output)"""
    hidden: Literal["store", "recompute"] = "store"
    """keep hidden states on disk (2D bytes a thinking token in bfloat16), or compute them in every epoch"""
    # training
    loss: Literal["mse", "ranking"] = "mse"
    """weighted squared error on scaled labels, or a pairwise ranking loss"""
    scaling: Literal["linear", "power"] | None = None
    """scale * label, or scale * label^exponent / exponent (default: linear for Llama, power for Qwen)"""
    scale: float | None = None
    """of labels (default: 1e4 if linear, 10 if power)"""
    exponent: float = 0.3
    """of labels, if the scaling is power"""
    band_weight: float = 5.0
    """weight in the squared error of targets from 4 to 5, all others 1"""
    wide: int | None = None
    """units of the first layer (default: 2D; the published predictors have 8192)"""
    narrow: int | None = None
    """units of the second layer (default: D/2; the published predictors have 2048)"""
    learning_rate: float = 5e-4
    """of AdamW, at the end of the warm-up"""
    weight_decay: float = 0.01
    """of AdamW"""
    warm_up: float = 0.1
    """share of the steps with a rising learning rate; a cosine to 0 follows"""
    clip: float = 1.0
    """largest norm of a step's gradients"""
    epochs: int = 15
    """times that every trace is seen"""
    batch: int = 256
    """traces a step"""
    micro_batch: int = 8
    """traces of a step computed at a time: memory, not the result, depends on it but for rounding"""
    held_out: float = 0.1
    """share of the problems to validate on"""
    save_every: int = 1
    """steps between checkpoints"""
    mesh: str | None = None
    """devices for traces and labels, as data=ROWS,model=HEADS; auto chooses (default: one device for traces, all for
    labels with the whole model on each)"""
    quiet: bool = False
    """print nothing but errors"""

    def __post_init__(self):
        least = {
            "limit": 1, "samples": 1, "batch_size": 1, "max_new_tokens": 1, "max_length": 4, "horizon": 0, "layer": 0,
            "wide": 1, "narrow": 1, "epochs": 1, "batch": 1, "micro_batch": 1, "save_every": 1, "seed": 0,
            "weight_decay": 0,
        }  # fmt: skip
        for name, low in least.items():
            value = getattr(self, name)
            if value is not None and value < low:
                raise UserError(f"{value} is below {low}", where=flag(name), mend=f"give {low} or more")
        for name in ("scale", "exponent", "band_weight", "learning_rate", "clip"):
            value = getattr(self, name)
            if value is not None and not value > 0:
                raise UserError(f"{value} is not above 0", where=flag(name))
        for name in ("held_out", "warm_up"):
            if not 0 < getattr(self, name) < 1:
                raise UserError(f"{getattr(self, name)} is outside (0, 1)", where=flag(name))
        check_mesh_text(self.mesh)
        if self.task == "demo" and self.seed == 0:
            what = "0 gives the problems that the demo is evaluated on"
            raise UserError(what, where="--seed", mend="give another seed to train on")
        for name in ("model", "task", "out", "data"):
            if getattr(self, name) == "":
                raise UserError("is empty", where=flag(name), mend="give a value, or leave the flag out")

    @property
    def directory(self) -> str:
        """``out``, or a name made of the model's."""
        return self.out or f"runs/predictor-{self.model.rstrip('/').rsplit('/', 1)[-1]}"


def flag(name: str) -> str:
    """max_length -> --max-length."""
    return "--" + name.replace("_", "-")
