"""The axis letters of jkv, and the array types that public functions are annotated with.

One letter means one thing in every einsum, comment and annotation:

    B  rows in the batch            T  query tokens           S  KV slots (= budget)
    N  query heads                  K  KV heads               G  query heads a KV head (N / K)
    H  head dimension               D  model dimension        F  feed-forward dimension
    V  vocabulary                   L  layers                 W  window (newest tokens, never evicted)
    R  slots that stay at an eviction (retain)

A *keep set* is the set of slots that stay at an eviction. A row has one (``granularity`` shared) or one for each layer
and KV head (``granularity`` head). Arrays with an entry for each keep set have the axes ``l`` and ``k``, which are 1
and 1, or L and K.

A *position* is a token's place in its sequence, and never changes. A *slot* is the token's place in the buffer, and
changes when an eviction moves it.
"""

from jaxtyping import Array, Bool, Float, Int, UInt32

__all__ = ["Array", "Bool", "Float", "Int", "UInt32"]
