"""dynts: thinking tokens stay by predicted importance (DynTS, arXiv:2601.18383).

When a thinking token is put in, a small predictor says from its final-norm hidden state how much the answer will
attend to it; it keeps that score. </think> and all that follows score +inf; the prompt is pinned by default. When the
row is full, the newest ``window`` stay and the best of the rest. One keep set a row, and no attention weights. The
paper's rule is ``--window 2000 --ratio .3`` (Llama) or ``.4`` (Qwen).

Ablations: ``--options keep=random`` or ``keep=bottom`` instead of top, ``--no-pin-prompt``, ``--window 0``. A prompt
that is not pinned is scored by the predictor, too.
"""

import dataclasses
from typing import Literal

import jax.numpy as jnp

from jkv.errors import UserError
from jkv.models.predictor import FILE, hidden_layer, importance, load_predictor
from jkv.policies.base import Context, Needs, NewTokens, Policy, Shape, Slots
from jkv.policies.random import uniform


@dataclasses.dataclass(frozen=True)
class DynTS(Policy):
    """keep: which scores stay.  think_end: token id of </think>; looked up in the tokenizer unless given.
    layer: whose attention input the predictor reads; its config says, None is the final norm's output.

    State: each slot's score, and whether the row is past </think>. Parameters: the predictor.
    """

    keep: Literal["top", "random", "bottom"] = "top"
    think_end: int | None = None
    layer: int | None = None

    name = "dynts"
    takes_predictor = True
    pin_prompt = True

    @property
    def needs(self) -> Needs:  # pyright: ignore[reportIncompatibleVariableOverride]
        """One hidden state, and the token ids."""
        return Needs(hidden=self.layer is None, inputs=self.layer is not None, tokens=True)

    def bind(self, context: Context):
        path = context.predictor
        if path is None and context.directory is not None and (context.directory / FILE).exists():
            path = context.directory
        if path is None:
            raise UserError(
                "policy dynts needs an importance predictor, and the model has none beside it",
                where="--predictor",
                mend="train one with python -m jkv.train_predictor, or give another --policy",
            )
        think_end = self.think_end
        if think_end is None and context.tokenizer is not None:
            # None when the tokenizer has no such token: then no answer is told from its thought.
            think_end = context.tokenizer.get_vocab().get("</think>")
        weights = load_predictor(path, context.config.d_model, context.dtype)
        layer = hidden_layer(path, context.config.n_layers)
        return dataclasses.replace(self, think_end=think_end, layer=layer), weights

    def init(self, shape: Shape):
        return {"score": shape.per_slot(), "answering": jnp.zeros((shape.rows,), jnp.bool_)}

    def observe(self, state, new: NewTokens):
        assert new.tokens is not None
        hidden = new.hidden if self.layer is None else (new.inputs or ())[self.layer]
        assert hidden is not None
        score = importance(new.parameters, hidden)
        answering = state["answering"]
        if self.think_end is not None:
            # A </think> within the prompt (a template's, or an example) ends no thought of this completion.
            written = new.valid & (new.position >= new.prompt_length[:, None])
            ended = (new.tokens == self.think_end) & written
            past = answering[:, None] | (jnp.cumsum(ended.astype(jnp.int32), axis=1) > 0)
            score = jnp.where(past & written, jnp.inf, score)
            answering = answering | jnp.any(ended, axis=1)
        return {"score": new.write(state["score"], score[:, None, None, :]), "answering": answering}

    def score(self, state, slots: Slots):
        score = state["score"]
        match self.keep:
            case "top":
                return score
            case "random":
                return jnp.where(jnp.isinf(score), score, uniform(slots))
            case "bottom":
                return jnp.where(jnp.isinf(score), score, -score)
