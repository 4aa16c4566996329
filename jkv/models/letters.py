"""The axis letters (`jkv.axes`) of a decoder's weights, by which they are quantised and placed on a mesh."""

# The end of a weight's dotted path, and its letters. The first match counts.
_LETTERS = (
    ("embed", "VD"),
    ("head", "DV"),
    ("attention.q.kernel", "DNH"),
    ("attention.k.kernel", "DKH"),
    ("attention.v.kernel", "DKH"),
    ("attention.o.kernel", "NHD"),
    ("attention.q.bias", "NH"),
    ("attention.k.bias", "KH"),
    ("attention.v.bias", "KH"),
    ("mlp.gate.kernel", "DF"),
    ("mlp.up.kernel", "DF"),
    ("mlp.down.kernel", "FD"),
    ("mlp.gate.bias", "F"),
    ("mlp.up.bias", "F"),
    ("o.bias", "D"),
    ("down.bias", "D"),
    ("q_norm.scale", "H"),
    ("k_norm.scale", "H"),
    ("norm.scale", "D"),
)


def weight_letters(path: str) -> str:
    """The axis letters of a weight, 'DNH' for a query projection for example.

    Args:
        path: the weight's dotted path in the decoder, ``layers.0.attention.q.kernel`` for example.

    Raises:
        KeyError: no decoder has such a path.
    """
    for end, letters in _LETTERS:
        if path == end or path.endswith(("." + end, "_" + end)):
            return letters
    raise KeyError(path)
