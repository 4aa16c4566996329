"""dynts: thinking tokens stay by predicted importance (DynTS, arXiv:2601.18383).

    score = predictor(final-norm hidden state) for a thinking token, computed once, when the token enters the buffer
    score = +inf for </think> and every token after it; the prompt is pinned by default

The predictor (``jkv.models.predictor``) estimates how much the answer will attend to the token. When the row is full,
the newest ``window`` tokens stay, and the highest scores of the rest. One keep set a row, and no attention weights. The
paper's rule is ``--window 2000 --ratio .3`` (Llama) or ``.4`` (Qwen).

The paper's ablations: ``--options keep=random`` or ``keep=bottom`` instead of top, ``--no-pin-prompt``, ``--window 0``.
A prompt that is not pinned is scored by the predictor, too. Differs from the source's code (Robin930/DynTS): there
``random`` and ``bottom`` may evict the prompt and the answer, which stay here.
"""

import dataclasses
from typing import Literal

import jax.numpy as jnp

from jkv.axes import Array, Float
from jkv.errors import UserError
from jkv.models.predictor import FILE, Predictor, hidden_layer, importance, load_predictor
from jkv.policies.base import Context, Needs, NewTokens, Policy, Shape, Slots
from jkv.policies.random import uniform


@dataclasses.dataclass(frozen=True)
class DynTS(Policy):
    """State: each slot's score, and whether the row is past </think>. Parameters: the predictor.

    Attributes:
        keep: which scores stay.
        think_end: token id of </think>; looked up in the tokenizer unless given.
        layer: the layer whose attention input the predictor reads, or None for the final norm's output. ``bind`` takes
            it from the predictor's config.
    """

    keep: Literal["top", "random", "bottom"] = "top"
    think_end: int | None = None
    layer: int | None = None

    name = "dynts"
    takes_predictor = True
    pin_prompt = True

    @property
    def needs(self) -> Needs:  # pyright: ignore[reportIncompatibleVariableOverride]
        """One hidden state a token, and the token ids."""
        return Needs(hidden=self.layer is None, inputs=self.layer is not None, tokens=True)

    def bind(self, context: Context) -> tuple["DynTS", Predictor]:
        """The policy with ``think_end`` and ``layer``, and the predictor's weights.

        Raises:
            UserError: there is no predictor, neither given nor beside the model, or it belongs to another model.
        """
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
            # None when the tokenizer has no such token: then every generated token counts as a thinking token.
            think_end = context.tokenizer.get_vocab().get("</think>")
        weights = load_predictor(path, context.config.d_model, context.dtype)
        layer = hidden_layer(path, context.config.n_layers)
        return dataclasses.replace(self, think_end=think_end, layer=layer), weights

    def init(self, shape: Shape) -> dict[str, Array]:
        """'score' [B, l, k, S], and 'answering' [B]: whether the row is past </think>."""
        return {"score": shape.per_slot(), "answering": jnp.zeros((shape.rows,), jnp.bool_)}

    def observe(self, state: dict[str, Array], new: NewTokens) -> dict[str, Array]:
        """The state with the new tokens' scores."""
        assert new.tokens is not None
        hidden = new.hidden if self.layer is None else (new.inputs or ())[self.layer]
        assert hidden is not None
        score = importance(new.parameters, hidden)
        answering = state["answering"]
        if self.think_end is not None:
            # Only a generated </think> ends the thought. One in the prompt belongs to the template or to an example.
            written = new.valid & (new.position >= new.prompt_length[:, None])
            ended = (new.tokens == self.think_end) & written
            past = answering[:, None] | (jnp.cumsum(ended.astype(jnp.int32), axis=1) > 0)
            score = jnp.where(past & written, jnp.inf, score)
            answering = answering | jnp.any(ended, axis=1)
        return {"score": new.write(state["score"], score[:, None, None, :]), "answering": answering}

    def score(self, state: dict[str, Array], slots: Slots) -> Float[Array, "B l k S"]:
        """The stored scores; for the ablations, all but +inf replaced by a draw or reversed."""
        score = state["score"]
        match self.keep:
            case "top":
                return score
            case "random":
                return jnp.where(jnp.isinf(score), score, uniform(slots))
            case "bottom":
                return jnp.where(jnp.isinf(score), score, -score)
