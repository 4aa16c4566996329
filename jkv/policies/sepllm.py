"""sepllm: the newest separators and the window stay (SepLLM, arXiv:2412.12094), as DynTS's comparisons run it.

Score = position, less 2**24 for a token that is no separator. Separators are . , ? ! ; : newline and the token that
begins a sequence. If there are fewer separators than may stay, the newest of the other tokens stay, too.

Differs from DynTS's code (Robin930/DynTS, inference/sep.py): there fewer tokens stay if a batch has too few separators;
a lone space counts as a separator, and a separator with a space in front does not.
"""

import dataclasses
from typing import Any

import jax.numpy as jnp

from jkv.axes import Array, Float
from jkv.errors import UserError
from jkv.policies.base import Context, Needs, Policy, Slots

SEPARATORS = frozenset(".,?!;:\n")
# What other tokens score less. float32 counts exactly up to here, so that every separator is above every other token.
_OTHERS = 2.0**24


@dataclasses.dataclass(frozen=True)
class SepLLM(Policy):
    """No state.

    Attributes:
        separators: their token ids; looked up in the tokenizer unless given (``--options separators=11,13``).
    """

    separators: tuple[int, ...] = ()

    name = "sepllm"
    needs = Needs(tokens=True)

    def bind(self, context: Context) -> tuple["SepLLM", tuple[()]]:
        """The policy with the token ids of its separators.

        Raises:
            UserError: no ids are given, and there is no tokenizer to look them up in.
        """
        if self.separators:
            return self, ()
        if context.tokenizer is None:
            raise UserError(
                "policy sepllm finds separators by the tokenizer, and the model has none",
                where="--policy",
                mend="give their token ids with --options separators=11,13",
            )
        return dataclasses.replace(self, separators=separator_ids(context.tokenizer)), ()

    def score(self, state: tuple[()], slots: Slots) -> Float[Array, "B l k S"]:
        """Separators by position, above other tokens by position.

        Raises:
            ValueError: the policy has no separators because it was not bound to a tokenizer.
        """
        del state
        assert slots.tokens is not None
        if not self.separators:
            raise ValueError("sepllm needs the token ids of its separators: bind it to a tokenizer, or give them")
        ids = jnp.asarray(self.separators, jnp.int32)
        separator = jnp.any(slots.tokens[..., None] == ids[None, None, None, None], axis=-1)
        return slots.positions.astype(jnp.float32) - jnp.where(separator, 0.0, _OTHERS)


def separator_ids(tokenizer: Any) -> tuple[int, ...]:
    """Token ids of the separators, ascending.

    Args:
        tokenizer: a Hugging Face tokenizer (``get_vocab`` and ``bos_token_id`` are used).

    Returns:
        Ids of tokens that are one separator, with or without spaces around it, and of the token that begins a sequence.
    """
    # Byte-level vocabularies write a space as 'Ġ' and a newline as 'Ċ'; SentencePiece writes a space as '▁'.
    plain = str.maketrans({"Ġ": " ", "▁": " ", "Ċ": "\n"})
    found = {id for token, id in tokenizer.get_vocab().items() if token.translate(plain).strip(" ") in SEPARATORS}
    if tokenizer.bos_token_id is not None:
        found.add(tokenizer.bos_token_id)
    return tuple(sorted(found))
