"""The policy interface: what a policy may ask for, what it is shown, and what it answers.

A policy only scores. It takes its state and a view of the slots, both pytrees of arrays, and returns a number per slot.
It declares what it needs in ``needs``, and the decode step computes nothing beyond that. Protection, ties and the
number of kept slots are the same for all policies and live elsewhere: ``jkv.policies.retention`` has the options,
``jkv.engine.priority`` applies them. ``jkv/policies/README.md`` shows the order in which the hooks are called.
"""

import dataclasses
from pathlib import Path
from typing import Annotated, Any, ClassVar

import jax
import jax.numpy as jnp
import pydantic
from jax.typing import DTypeLike
from jaxtyping import Shaped

from jkv.axes import Array, Bool, Float, Int
from jkv.models.config import ModelConfig
from jkv.policies.retention import Retention
from jkv.pytree import pytree, static

# Types for the fields of a policy, which are its options. ``jkv.policies.options`` checks values against them.
Count = Annotated[int, pydantic.Field(ge=1)]
Share = Annotated[float, pydantic.Field(ge=0, le=1)]


@dataclasses.dataclass(frozen=True)
class Needs:
    """What the decode step has to compute for a policy. The default asks for nothing, and then nothing is paid.

    Attributes:
        queries: the newest n queries of every query head, after RoPE, in ``slots.queries``. The engine remembers them
            in a ring of n places a row and layer, and they are read only at an eviction. They come with the keys.
        attention: the attention weights of every new token over the slots, in ``new.attention``. Paid at every token:
            a second pass over the keys, or, in the TPU kernel, writing down scores that it computes anyway.
        keys: the row's keys as they are cached, after RoPE, in ``slots.keys``. Read at an eviction.
        values: the row's values, in ``slots.values``. Read at an eviction.
        hidden: the final norm's output for every new token, in ``new.hidden``. Paid at every token.
        inputs: what enters each layer's attention, after that layer's norm, in ``new.inputs``. Paid at every token.
        tokens: token ids, in ``new.tokens`` and ``slots.tokens``. Paid at every token: one integer a slot.
    """

    queries: int = 0
    attention: bool = False
    keys: bool = False
    values: bool = False
    hidden: bool = False
    inputs: bool = False
    tokens: bool = False

    @property
    def buffer(self) -> bool:
        """Whether scoring reads the KV buffer. Then ``look`` and ``score`` are called for one row at a time (B = 1), so
        that temporaries are those of one row."""
        return self.keys or self.values or self.queries > 0


@dataclasses.dataclass(frozen=True)
class Shape:
    """The sizes a policy's state is built from.

    Attributes:
        rows: B.
        slots: S, the budget.
        keep_layers: l, the keep sets' layers: L with granularity head, 1 with granularity shared.
        keep_heads: k, the keep sets' heads: K with granularity head, 1 with granularity shared.
        n_layers: L.
        n_heads: N.
        n_kv_heads: K.
        head_dim: H.
        d_model: D.
    """

    rows: int
    slots: int
    keep_layers: int
    keep_heads: int
    n_layers: int
    n_heads: int
    n_kv_heads: int
    head_dim: int
    d_model: int

    def per_slot(self, dtype: DTypeLike = jnp.float32) -> Shaped[Array, "B l k S"]:
        """Zeros with one entry a slot and keep set: the form of every state leaf that follows its slots."""
        return jnp.zeros((self.rows, self.keep_layers, self.keep_heads, self.slots), dtype)


@dataclasses.dataclass(frozen=True)
class Context:
    """What ``Policy.bind`` is given to make a policy ready for a model.

    Attributes:
        config: the model's config.
        tokenizer: a Hugging Face tokenizer, or None (an Engine over bare weights has none).
        directory: the directory of the checkpoint, or None.
        predictor: the path of ``--predictor``, or None.
        dtype: of the model's weights and activations.
    """

    config: ModelConfig
    tokenizer: Any = None
    directory: Path | None = None
    predictor: Path | None = None
    dtype: DTypeLike = jnp.float32


@pytree
class NewTokens:
    """Tokens that were just inserted: a piece of a prompt (B = 1, T tokens), or one token a row (T = 1).

    Fields that the policy did not ask for are None.

    Attributes:
        position: each token's place in its sequence.
        slot: the slot it was written to, per keep set.
        valid: False for padding and idle rows; nothing else of such a token means anything.
        occupied: slots occupied once the token is in, itself included, which is how many its query sees.
        prompt_length: tokens of the row's prompt.
        model: the model's config.
        parameters: what the policy's ``bind`` returned.
        tokens: token ids.
        hidden: the final norm's output.
        inputs: what entered each layer's attention, one array a layer.
        attention: attention weights over the slots, one array a layer; 0 for slots that are not occupied.
    """

    position: Int[Array, "B T"]
    slot: Int[Array, "B l k T"]
    valid: Bool[Array, "B T"]
    occupied: Int[Array, "B T"]
    prompt_length: Int[Array, " B"]
    model: ModelConfig = static()
    parameters: Any = ()
    tokens: Int[Array, "B T"] | None = None
    hidden: Float[Array, "B T D"] | None = None
    inputs: tuple[Float[Array, "B T D"], ...] | None = None
    attention: tuple[Float[Array, "B N T S"], ...] | None = None

    def write(self, leaf: Array, values: Array) -> Array:
        """Store one value a token at the tokens' slots; tokens that are not valid write nothing.

        Args:
            leaf: the state leaf to write to, [B, l, k, S].
            values: [B, l, k, T], or anything that broadcasts to it.

        Returns:
            ``leaf`` with the values in place, in its own dtype.
        """
        slots = leaf.shape[-1]
        at = jnp.where(self.valid[:, None, None, :], self.slot, slots)  # out of range: dropped
        values = jnp.broadcast_to(values, at.shape).astype(leaf.dtype)
        put = lambda row, index, value: row.at[index].set(value, mode="drop")
        return jax.vmap(jax.vmap(jax.vmap(put)))(leaf, at, values)


@pytree
class Slots:
    """What a policy sees when it scores.

    Fields that the policy did not ask for are None. Keys, values and queries are one array a layer.

    Attributes:
        positions: the position of the token in each slot, per keep set.
        occupied: whether a slot holds a token: the first ``length`` slots of a row do.
        length: occupied slots.
        newest: position of the newest token in the buffer.
        prompt_length: tokens of the row's prompt.
        rng: a random key a row, another one at every eviction.
        rule: how much stays, and what is protected.
        model: the model's config.
        implementation: which implementation of an op to call, if the policy calls ops of `jkv.ops`.
        parameters: what the policy's ``bind`` returned.
        tokens: the token id in each slot, per keep set.
        keys: as cached, after RoPE; what slots that are not occupied hold means nothing.
        values: as cached; the same holds.
        queries: a ring of the newest n, after RoPE; the query of position p is at place p mod n.
    """

    positions: Int[Array, "B l k S"]
    occupied: Bool[Array, "B S"]
    length: Int[Array, " B"]
    newest: Int[Array, " B"]
    prompt_length: Int[Array, " B"]
    rng: jax.Array
    rule: Retention = static()
    model: ModelConfig = static()
    implementation: str = static(default="auto")
    parameters: Any = ()
    tokens: Int[Array, "B l k S"] | None = None
    keys: tuple[Float[Array, "B K S H"], ...] | None = None
    values: tuple[Float[Array, "B K S H"], ...] | None = None
    queries: tuple[Float[Array, "B n N H"], ...] | None = None

    @property
    def ascending(self) -> bool:
        """Whether slots are in order of position. They are, unless single slots are overwritten (one out, one in)."""
        return not self.rule.one_out

    @property
    def protected(self) -> Bool[Array, "B l k S"]:
        """Slots of the window, the sinks, and the prompt if it is pinned."""
        position = self.positions
        safe = position > (self.newest - self.rule.window)[:, None, None, None]
        safe |= position < self.rule.sinks
        if self.rule.pin_prompt:
            safe |= position < self.prompt_length[:, None, None, None]
        return safe

    def of_layer(self, x: Array, layer: int) -> Array:
        """One layer of an array per keep set: [B, l, k, S] to [B, k, S], whether or not layers share a keep set."""
        return x[:, layer if x.shape[1] > 1 else 0]


class Policy:
    """Base of every policy: subclass it, set ``name`` (and ``needs``), implement ``score``.

    Subclasses are frozen dataclasses. Their fields are the policy's options (``--options name=value``), and because
    they are hashable, a policy can be a static argument of the jitted step. The hooks below are traced by JAX.

    Attributes:
        name: what ``--policy`` calls it.
        needs: what it asks for. A subclass whose needs depend on its options makes this a property.
        pin_prompt: default of ``--pin-prompt``.
        sinks: default of ``--sinks``.
        evicts: False only for the full cache.
        takes_predictor: whether ``bind`` reads ``--predictor``.
    """

    name: ClassVar[str]
    needs: ClassVar[Needs] = Needs()
    pin_prompt: ClassVar[bool] = False
    sinks: ClassVar[int] = 0
    evicts: ClassVar[bool] = True
    takes_predictor: ClassVar[bool] = False

    @classmethod
    def default_window(cls, budget: int, *, retain: int | None, ratio: float | None) -> int:
        """Newest tokens never evicted, unless ``--window`` is given: an eighth of the budget.

        Args:
            budget: slots a row owns.
            retain: ``--retain``, or None if ``ratio`` is given.
            ratio: ``--ratio``, or None if ``retain`` is given.
        """
        del retain, ratio
        return budget // 8

    def bind(self, context: Context) -> tuple["Policy", Any]:
        """Make the policy ready for a model: look token ids up, load weights. Called once a run.

        Returns:
            The policy to run, and its parameters: a pytree of arrays that ``observe`` finds in ``new.parameters``,
            ``look`` and ``score`` in ``slots.parameters``.

        Raises:
            UserError: something it can't do without is missing.
        """
        del context
        return self, ()

    def init(self, shape: Shape) -> Any:
        """The state of rows that have seen no token.

        Returns:
            A pytree with leading axis B on every leaf. Leaves of shape [B, l, k, S] follow their slots when the buffer
            is compacted.
        """
        del shape
        return ()

    def observe(self, state: Any, new: NewTokens) -> Any:
        """The state after new tokens. Called after every token, and after every piece of a prompt."""
        del new
        return state

    def look(self, state: Any, slots: Slots) -> Any:
        """The state after a look at the slots at an eviction, before ``score``: for what is learned only then."""
        del slots
        return state

    def score(self, state: Any, slots: Slots) -> Float[Array, "B l k S"]:
        """How long each slot should stay: higher is longer. Called at an eviction.

        Returns:
            [B, 1, 1, S], or [B, L, K, S] for a score per layer and KV head, whatever the granularity: where one keep
            set is shared, the engine averages over layers and heads. +inf is allowed; a NaN counts as the lowest score.
        """
        raise NotImplementedError(f"policy {type(self).__name__} has no score")
