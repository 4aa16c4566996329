"""The axis letters of jkv, and the array types that public functions are annotated with.

One letter means one thing in every einsum, comment and annotation:

    B  rows in the batch            T  query tokens           S  KV slots (= budget)
    N  query heads                  K  KV heads               G  query heads a KV head (N / K)
    H  head dimension               D  model dimension        F  feed-forward dimension
    V  vocabulary                   L  layers                 W  window (newest tokens, never evicted)
    R  slots kept by an eviction (retain)

Two more letters appear where a keep set may be shared: ``l`` is 1 or L and ``k`` is 1 or K
(``granularity`` shared or head).

A *position* is a token's place in its sequence (it only grows); a *slot* is its place in the buffer.
"""

from jaxtyping import Array, Bool, Float, Int, UInt32

__all__ = ["Array", "Bool", "Float", "Int", "UInt32"]
