"""The configuration of ``python -m jkv.train_predictor``."""

import dataclasses
from typing import Literal

from jkv.config.decode import check_mesh_text
from jkv.errors import UserError

DEMO_LIMIT = 1000


@dataclasses.dataclass(frozen=True)
class TrainConfig:
    """One predictor. The defaults of the training are DynTS's published recipe (arXiv:2601.18383)."""

    model: str = "demo-llama"
    """model to train for: demo-llama, demo-qwen, a Hugging Face or converted directory, or a hub id"""
    dtype: Literal["float32", "bfloat16"] | None = None
    """data type of the model (default: float32 on CPU, bfloat16 elsewhere); the predictor is trained in float32"""
    task: str = "demo"
    """problems to decode: demo, or FILE.jsonl with answers; not a task that you evaluate on"""
    out: str | None = None
    """directory for traces, labels, checkpoints and the predictor (default: runs/predictor-MODEL)"""
    data: str | None = None
    """--out of another training, whose traces and labels are used instead of new ones"""
    # traces
    limit: int | None = None
    """largest number of problems (default: 1000 for the demo, otherwise all)"""
    samples: int = 1
    """completions drawn for each problem"""
    batch_size: int = 16
    """rows decoded together"""
    max_new_tokens: int | None = None
    """largest number of new tokens in a completion (default: 320 for the demo, otherwise 16384)"""
    temperature: float = 0.6
    """sampling temperature of the completions; 0 always takes the likeliest token"""
    top_p: float = 0.95
    """draw from the likeliest tokens whose probabilities add up to this, applied before top-k; 1 switches it off"""
    top_k: int = 20
    """draw from this many likeliest tokens only; 0 switches it off"""
    seed: int = 1
    """seed of all random draws, those of the demo's problems included; for the demo not 0, whose problems it is
    evaluated on"""
    max_length: int = 18_000
    """largest number of tokens of a trace, prompt included; longer traces are left out"""
    # labels
    label: Literal["answer", "future"] = "answer"
    """what a token's importance is: the attention from the answer, or from all tokens more than --horizon later"""
    horizon: int = 128
    """with --label future: attention counts from more than this many tokens later"""
    layer: int | None = None
    """layer, from 0, whose attention input the predictor reads (default: the final norm's output)"""
    hidden: Literal["store", "recompute"] = "store"
    """store hidden states on disk (2 D bytes for each thinking token in bfloat16), or compute them again in every
    epoch"""
    # training
    loss: Literal["mse", "ranking"] = "mse"
    """loss: weighted squared error on scaled labels (mse), or a pairwise ranking loss"""
    scaling: Literal["linear", "power"] | None = None
    """how labels are scaled: scale * label (linear), or scale * label^exponent / exponent (power) (default: linear for
    Llama, power for Qwen)"""
    scale: float | None = None
    """scale of the labels (default: 1e4 if linear, 10 if power)"""
    exponent: float = 0.3
    """exponent of the labels, with --scaling power"""
    band_weight: float = 5.0
    """weight of scaled labels from 4 to 5 in the squared error; all others have 1"""
    wide: int | None = None
    """units of the predictor's first layer (default: 2 D; the published predictors have 8192)"""
    narrow: int | None = None
    """units of the predictor's second layer (default: D / 2; the published predictors have 2048)"""
    learning_rate: float = 5e-4
    """learning rate of AdamW at the end of the warm-up"""
    weight_decay: float = 0.01
    """weight decay of AdamW"""
    warm_up: float = 0.1
    """share of the steps during which the learning rate rises; it then falls to 0 along a cosine"""
    clip: float = 1.0
    """largest norm of a step's gradient; a longer one is shortened to it"""
    epochs: int = 15
    """passes over all traces"""
    batch: int = 256
    """traces in a step"""
    micro_batch: int = 8
    """traces of a step that are computed at once; changes memory, and the result by rounding only"""
    held_out: float = 0.1
    """share of the problems that are held out for validation"""
    save_every: int = 1
    """steps between two checkpoints"""
    mesh: str | None = None
    """devices that share traces and labels, as data=ROWS,model=HEADS; auto chooses the sizes (default: one device for
    traces; for labels all of them, with the whole model on each)"""
    quiet: bool = False
    """print errors only"""

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
        """``out``, or by default a directory named after the model."""
        return self.out or f"runs/predictor-{self.model.rstrip('/').rsplit('/', 1)[-1]}"


def flag(name: str) -> str:
    """max_length -> --max-length."""
    return "--" + name.replace("_", "-")
