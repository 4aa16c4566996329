"""The axis letters (`jkv.axes`) of every weight of a decoder."""

# By the end of its dotted path.
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
    """The axis letters of a weight by its dotted path. KeyError for a path that no decoder has."""
    for end, letters in _LETTERS:
        if path == end or path.endswith(("." + end, "_" + end)):
            return letters
    raise KeyError(path)
