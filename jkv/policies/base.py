"""The policy interface: what a policy may ask for, what it is shown, and what it answers.

A policy only scores: state in, scores out, over pytrees. It declares what it needs, and the step computes only that.
Protection, ties and the number of kept slots are the same for all policies; see ``jkv.policies.retention``.
"""

import dataclasses
from pathlib import Path
from typing import Annotated, Any, ClassVar

import jax
import jax.numpy as jnp
import pydantic

from jkv.axes import Array, Bool, Float, Int
from jkv.models.config import ModelConfig
from jkv.policies.retention import Retention
from jkv.pytree import pytree, static

# Types of options, checked where a policy is made from words.
Count = Annotated[int, pydantic.Field(ge=1)]
Share = Annotated[float, pydantic.Field(ge=0, le=1)]


@dataclasses.dataclass(frozen=True)
class Needs:
    """What the step has to compute for a policy. Nothing is free; the default asks for nothing.

    Paid at an eviction: keys, values (the row's buffer), queries (the newest n queries after RoPE; remembering them
    costs a ring of n).
    Paid at every token: attention (its weights over the slots: a second pass over the keys), hidden (its final-norm
    hidden state), inputs (what entered each layer's attention, after its norm), tokens (its id).
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
        """Whether scoring reads the KV buffer. Such policies are shown one row at a time."""
        return self.keys or self.values or self.queries > 0


@dataclasses.dataclass(frozen=True)
class Shape:
    """Sizes a policy's state is built from: rows B, slots S, keep sets l x k, and the model's L, N, K, H, D."""

    rows: int
    slots: int
    keep_layers: int
    keep_heads: int
    n_layers: int
    n_heads: int
    n_kv_heads: int
    head_dim: int
    d_model: int

    def per_slot(self, dtype=jnp.float32) -> Float[Array, "B l k S"] | Int[Array, "B l k S"]:
        """Zeros with one entry a slot and keep set: what a per-slot state leaf looks like."""
        return jnp.zeros((self.rows, self.keep_layers, self.keep_heads, self.slots), dtype)


@dataclasses.dataclass(frozen=True)
class Context:
    """What a policy is made ready with: the model's config, its tokenizer, directory and dtype, and ``--predictor``.

    Tokenizer and paths are None where there are none (an Engine over bare weights).
    """

    config: ModelConfig
    tokenizer: Any = None
    directory: Path | None = None
    predictor: Path | None = None
    dtype: Any = jnp.float32


@pytree
class NewTokens:
    """Tokens just inserted: a piece of a prompt (B = 1), or one a row (T = 1).

    occupied: slots occupied once the token is in, itself included: what its query sees.
    Fields a policy did not ask for are None. ``attention`` and ``inputs`` are per layer; dead slots get no attention.
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
        """``leaf`` [B, l, k, S] with ``values`` [B, l, k, T] at the new tokens' slots (broadcast over l and k)."""
        slots = leaf.shape[-1]
        at = jnp.where(self.valid[:, None, None, :], self.slot, slots)  # out of range: dropped
        values = jnp.broadcast_to(values, at.shape).astype(leaf.dtype)
        put = lambda row, index, value: row.at[index].set(value, mode="drop")
        return jax.vmap(jax.vmap(jax.vmap(put)))(leaf, at, values)


@pytree
class Slots:
    """What a policy sees when it scores. Fields it did not ask for are None; keys, values, queries are per layer.

    queries: a ring; that of position p is at p mod n.  rng: [B] random keys, fresh at every eviction.
    ascending: slots are in order of position (always so when evictions are in bulk).
    parameters: what the policy's ``bind`` returned.  implementation: of the ops that a policy calls.
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
        """Whether slots are in order of position: always, unless single slots are overwritten."""
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
        """[B, l, k, S] cut to one layer: [B, k, S]."""
        return x[:, layer if x.shape[1] > 1 else 0]


class Policy:
    """Base of every policy: subclass, set ``name`` (and ``needs``), implement ``score``.

    Subclasses are frozen dataclasses: their fields are the policy's options (``--options name=value``), and they are
    hashable, so a policy can be a static argument of the jitted step.
    """

    name: ClassVar[str]
    needs: ClassVar[Needs] = Needs()  # a subclass whose needs depend on its options makes it a property
    pin_prompt: ClassVar[bool] = False  # default of the flag
    sinks: ClassVar[int] = 0  # default of the flag
    evicts: ClassVar[bool] = True
    takes_predictor: ClassVar[bool] = False  # whether ``bind`` reads ``--predictor``

    @classmethod
    def default_window(cls, budget: int, *, retain: int | None, ratio: float | None) -> int:
        """Newest tokens never evicted, unless ``--window`` is given. One of ``retain`` and ``ratio`` is a number."""
        del retain, ratio
        return budget // 8

    def bind(self, context: Context) -> tuple["Policy", Any]:
        """The policy made ready for a model (token ids looked up, say), and its parameters: a pytree of arrays that
        ``observe`` and ``score`` find in ``new.parameters`` and ``slots.parameters``.

        Raises UserError when something it can't do without is missing.
        """
        del context
        return self, ()

    def init(self, shape: Shape) -> Any:
        """A pytree with leading axis B on every leaf. Leaves of shape [B, l, k, S] follow their slots when the buffer
        is compacted."""
        del shape
        return ()

    def observe(self, state: Any, new: NewTokens) -> Any:
        """Called after every token, and after every piece of a prompt."""
        del new
        return state

    def look(self, state: Any, slots: Slots) -> Any:
        """Called at an eviction, before ``score``: for what a policy learns only then."""
        del slots
        return state

    def score(self, state: Any, slots: Slots) -> Float[Array, "B l k S"]:
        """Higher stays longer. [B, 1, 1, S], or [B, L, K, S] for a score per layer and KV head."""
        raise NotImplementedError(f"policy {type(self).__name__} has no score")
