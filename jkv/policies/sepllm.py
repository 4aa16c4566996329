"""sepllm: the newest separators and the window stay (SepLLM, arXiv:2412.12094), as DynTS's comparisons run it.

Separators are . , ? ! ; : newline and the beginning of the sequence. If there are fewer than may stay, the newest of
the other tokens fill up.
"""

import dataclasses
from typing import Any

import jax.numpy as jnp

from jkv.errors import UserError
from jkv.policies.base import Context, Needs, Policy, Slots

SEPARATORS = frozenset(".,?!;:\n")
_OTHERS = 2.0**24  # float32 counts exactly to here, so every separator is above every other token


@dataclasses.dataclass(frozen=True)
class SepLLM(Policy):
    """separators: their token ids; looked up in the tokenizer unless given (``--options separators=11,13``)."""

    separators: tuple[int, ...] = ()

    name = "sepllm"
    needs = Needs(tokens=True)

    def bind(self, context: Context):
        if self.separators:
            return self, ()
        if context.tokenizer is None:
            raise UserError(
                "policy sepllm finds separators by the tokenizer, and the model has none",
                where="--policy",
                mend="give their token ids with --options separators=11,13",
            )
        return dataclasses.replace(self, separators=separator_ids(context.tokenizer)), ()

    def score(self, state, slots: Slots):
        del state
        assert slots.tokens is not None
        if not self.separators:
            raise ValueError("sepllm needs the token ids of its separators: bind it to a tokenizer, or give them")
        ids = jnp.asarray(self.separators, jnp.int32)
        separator = jnp.any(slots.tokens[..., None] == ids[None, None, None, None], axis=-1)
        return slots.positions.astype(jnp.float32) - jnp.where(separator, 0.0, _OTHERS)


def separator_ids(tokenizer: Any) -> tuple[int, ...]:
    """Ids of the tokens that are one separator, a space in front or not, and of the beginning of the sequence."""
    # The marks that byte-level and SentencePiece vocabularies write for a space and a newline.
    plain = str.maketrans({"Ġ": " ", "▁": " ", "Ċ": "\n"})
    found = {id for token, id in tokenizer.get_vocab().items() if token.translate(plain).strip(" ") in SEPARATORS}
    if tokenizer.bos_token_id is not None:
        found.add(tokenizer.bos_token_id)
    return tuple(sorted(found))
