"""Train a demo checkpoint from scratch: ``python -m jkv.demo.train --arch llama --seed 1 --out DIR``."""

import dataclasses
import pathlib
import time
from typing import Literal

import jax.numpy as jnp
from flax import nnx
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from converters.hf import read_hf, write_hf
from jkv.demo import architectures, state, task, tokenizer, training
from jkv.demo.batches import Layout, encode
from jkv.errors import UserError
from jkv.models import Decoder
from jkv.terminal import flags
from jkv.terminal.command import run as run_command

STATE = "training.npz"
HELD_OUT, HELD_OUT_SEED = 200, 2**31 - 1


@dataclasses.dataclass(frozen=True)
class TrainConfig:
    """The configuration of a training run. Each field is a flag, and the text under it the flag's help."""

    arch: Literal["llama", "qwen2"] = "llama"
    """architecture of the model"""
    out: str = ""
    """directory of the checkpoint and of the training state (default: demo-llama or demo-qwen)"""
    init: str = ""
    """checkpoint to start from (default: random weights)"""
    seed: int = 0
    """seed of the initial weights and of the training problems"""
    resume: bool = False
    """continue from the training state in --out"""
    short_steps: int = 200
    """steps on 2 or 3 variables without filler"""
    plain_steps: int = 450
    """steps on 2 to 6 variables without filler"""
    full_steps: int = 1200
    """steps on the task itself"""
    crowded: float = 0.0
    """fraction of the problems that use only two different digits, so that definitions look alike"""
    tokens: int = 6000
    """tokens of a step, approximately"""
    learning_rate: float = 3e-3
    """peak of the learning rate's schedule"""
    save_every: int = 100
    """steps between held-out evaluations, each followed by a save of the training state"""
    stop_after: int = 0
    """stop after so many steps: save the training state and export no checkpoint (0: run to the end)"""

    def __post_init__(self):
        least = dict.fromkeys(("seed", "short_steps", "plain_steps", "full_steps", "stop_after"), 0)
        for name, low in {**least, "tokens": 1, "save_every": 1}.items():
            if getattr(self, name) < low:
                raise UserError(f"expected at least {low}, got {getattr(self, name)}", where=_flag(name))
        if not 0 < self.learning_rate < float("inf"):
            raise UserError(f"expected more than 0, got {self.learning_rate}", where=_flag("learning_rate"))
        if not 0 <= self.crowded <= 1:
            raise UserError(f"expected 0 to 1, got {self.crowded}", where=_flag("crowded"))
        if not self.curriculum.steps:
            raise UserError("no steps to train", where=_flag("full_steps"), mend="give at least 1")

    @property
    def directory(self) -> pathlib.Path:
        """``out``, or by default the name of the demo model."""
        return pathlib.Path(self.out or f"demo-{self.arch.removesuffix('2')}")

    @property
    def curriculum(self) -> training.Curriculum:
        """The stages of training."""
        return training.Curriculum(self.short_steps, self.plain_steps, self.full_steps, self.tokens)

    @property
    def identity(self) -> str:
        """Text with all settings that the weights depend on. Only a run with the same identity resumes a state."""
        ignored = {"out", "resume", "save_every", "stop_after"}
        return " ".join(f"{k}={v}" for k, v in dataclasses.asdict(self).items() if k not in ignored)


def train(config: TrainConfig) -> pathlib.Path:
    """Train, or continue to train, and export the checkpoint in bfloat16.

    Returns:
        The checkpoint's directory.

    Raises:
        UserError: the training state can't be resumed, or the initial checkpoint can't be read or is of another model.
    """
    out, curriculum = config.directory, config.curriculum
    out.mkdir(parents=True, exist_ok=True)
    transform = training.optimizer(curriculum.steps, config.learning_rate)
    graph, params, moments = training.start(_initial(config), transform)
    done = 0
    if config.resume:
        (params, moments), done = state.load(out / STATE, (params, moments), config.identity)
    vocabulary = tokenizer.vocabulary()
    last = min(curriculum.steps, config.stop_after or curriculum.steps)
    with _progress() as progress:
        bar = progress.add_task("", total=last, completed=done, loss=float("nan"), rate=0.0)
        since, losses, tokens = time.perf_counter(), [], 0
        for step in range(done, last):
            layout = curriculum.layout(step)
            batch = encode(_draw(config, layout, step), layout, vocabulary)
            params, moments, loss = training.train_step(graph, transform, params, moments, batch, layout)
            losses.append(loss)
            tokens += batch.tokens.size
            rate = tokens / (time.perf_counter() - since)
            if (step + 1) % 10 == 0:
                progress.update(bar, completed=step + 1, loss=float(loss), rate=rate)
            if (step + 1) % config.save_every == 0 or step + 1 == last:
                mean, right = float(jnp.mean(jnp.stack(losses))), held_out(graph, params, vocabulary)
                progress.console.print(f"step {step + 1}: loss {mean:.4f}, {rate:,.0f} tokens/s, held-out {right:.1%}")
                state.save(out / STATE, (params, moments), step + 1, config.identity)
                since, losses, tokens = time.perf_counter(), [], 0
    if last == curriculum.steps:
        export(graph, params, out)
    return out


def held_out(graph: nnx.GraphDef, params: nnx.State, vocabulary: dict[str, int]) -> float:
    """``training.problems_right`` on held-out problems.

    Of HELD_OUT evaluation problems as many are taken of each size as there are of the rarest size.

    Args:
        graph: of the model.
        params: its weights.
        vocabulary: token ids of the words.
    """
    by_size: dict[int, list[task.Problem]] = {}
    for problem in task.problems(HELD_OUT, HELD_OUT_SEED):
        by_size.setdefault(len(problem.definitions), []).append(problem)
    layout = Layout(min(map(len, by_size.values())), tuple(sorted(by_size)), filler=True)
    batch = encode([p for size in layout.sizes for p in by_size[size][: layout.rows]], layout, vocabulary)
    return float(training.problems_right(graph, params, batch, layout))


def _draw(config: TrainConfig, layout: Layout, step: int) -> list[task.Problem]:
    sizes = layout.variables
    return task.generate(config.seed, len(sizes), variables=sizes, crowded=config.crowded, index=step)


def _initial(config: TrainConfig) -> Decoder:
    expected = architectures.model_config(config.arch)
    if not config.init:
        return Decoder(expected, rngs=nnx.Rngs(config.seed))
    model = read_hf(config.init, "float32")
    if model.config != expected:
        raise UserError(f"isn't a demo checkpoint of {config.arch}", where=config.init, mend="give another --init")
    return model


def export(graph: nnx.GraphDef, params: nnx.State, directory: pathlib.Path) -> None:
    """Write a Hugging Face checkpoint: configuration, weights in bfloat16, tokenizer.

    Args:
        graph: of the model.
        params: its weights, in float32.
        directory: an existing directory.
    """
    model = nnx.merge(graph, params)
    write_hf(model, directory, jnp.bfloat16)
    tokenizer.save(directory, model.config.max_positions)


def _flag(name: str) -> str:
    return "--" + name.replace("_", "-")


def _progress() -> Progress:
    return Progress(
        TextColumn("loss {task.fields[loss]:.3f}  {task.fields[rate]:,.0f} tokens/s"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeRemainingColumn(),
    )


def main(argv: list[str] | None = None) -> None:
    """Train with the flags of the command line (or ``argv``)."""
    train(flags.parse(TrainConfig, argv, prog="python -m jkv.demo.train", description=__doc__))


if __name__ == "__main__":
    run_command(main)
