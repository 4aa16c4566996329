"""Which tensor of a Hugging Face file is which leaf (weight) of the Decoder, as tables.

A row of a table has the tensor's name and axes in the file, and the leaf's path and axes in the Decoder. Axes are the
letters of ``jkv.axes``. Letters that are written together (``NH``) are one axis of the file, into which two are
flattened. How an array is split, transposed and joined follows from the two strings, in both directions, so no row
needs code of its own. ``{l}`` stands for the number of the layer.
"""

import dataclasses
import math
import re
from collections.abc import Callable, Iterator, Mapping, Sequence

import numpy as np

from jkv.models.config import ModelConfig

# A part of a leaf: where it starts and stops on each axis, by letter.
Part = Mapping[str, tuple[int, int]]


@dataclasses.dataclass(frozen=True)
class Row:
    """One tensor of a checkpoint.

    Attributes:
        name: in the file.
        path: of the leaf in the Decoder, dotted.
        file_axes: of the tensor, as 'NH D'.
        leaf_axes: of the leaf, as 'D N H'.
        when: whether a model with this config has it.
    """

    name: str
    path: str
    file_axes: str
    leaf_axes: str
    when: Callable[[ModelConfig], bool] = lambda config: True

    def file_shape(self, config: ModelConfig) -> tuple[int, ...]:
        """The tensor's shape in the file."""
        size = axis_sizes(config)
        return tuple(math.prod(size[letter] for letter in group) for group in self.file_axes.split())

    def leaf_shape(self, config: ModelConfig) -> tuple[int, ...]:
        """The leaf's shape in the Decoder."""
        size = axis_sizes(config)
        return tuple(size[letter] for letter in self.leaf_axes.split())

    def part(self, index: Sequence[slice], config: ModelConfig) -> Part:
        """The part of the leaf that slices (one for each axis, as a sharding gives them) cut out of it."""
        letters, shape = self.leaf_axes.split(), self.leaf_shape(config)
        return {x: s.indices(n)[:2] for x, n, s in zip(letters, shape, index, strict=True)}

    def file_box(self, part: Part, config: ModelConfig) -> tuple[slice, ...]:
        """Where a part of the leaf is in the file's tensor: a slice for each axis.

        Raises:
            ValueError: an axis is cut whose letter is not the first of a flattened axis of the file.
        """
        size, box = axis_sizes(config), []
        for group in self.file_axes.split():
            if any(part[x] != (0, size[x]) for x in group[1:]):
                raise ValueError(f"{self.name}: {part} is not a box of axes {self.file_axes}")
            width = math.prod(size[x] for x in group[1:])
            box.append(slice(part[group[0]][0] * width, part[group[0]][1] * width))
        return tuple(box)

    def to_leaf(self, tensor: np.ndarray, config: ModelConfig, part: Part | None = None) -> np.ndarray:
        """An array in the file's layout, brought into the Decoder's: a view where NumPy can make one.

        Args:
            tensor: the tensor, or the part of it at `file_box`.
            config: the model's.
            part: which part of the leaf it is; all of it if None.
        """
        size, letters, wanted = axis_sizes(config), self.file_axes.replace(" ", ""), self.leaf_axes.split()
        size |= {x: stop - start for x, (start, stop) in (part or {}).items()}
        split = tensor.reshape([size[letter] for letter in letters])
        return split.transpose([letters.index(letter) for letter in wanted])

    def to_file(self, leaf: np.ndarray, config: ModelConfig) -> np.ndarray:
        """A leaf in the Decoder's layout, brought into the file's: the inverse of `to_leaf`, bit for bit."""
        letters, have = self.file_axes.replace(" ", ""), self.leaf_axes.split()
        return leaf.transpose([have.index(letter) for letter in letters]).reshape(self.file_shape(config))


def axis_sizes(config: ModelConfig) -> dict[str, int]:
    """The size of each axis, by its letter."""
    return {
        "V": config.vocab_size,
        "D": config.d_model,
        "F": config.d_ff,
        "N": config.n_heads,
        "K": config.n_kv_heads,
        "H": config.head_dim,
    }


def _qkv_bias(config: ModelConfig) -> bool:
    return config.qkv_bias


def _o_bias(config: ModelConfig) -> bool:
    return config.o_bias


def _mlp_bias(config: ModelConfig) -> bool:
    return config.mlp_bias


def _untied(config: ModelConfig) -> bool:
    return not config.tied_head


_LAYER, _BLOCK = "model.layers.{l}.", "layers.{l}."
_ATTENTION, _MLP = _LAYER + "self_attn.", _LAYER + "mlp."

_COMMON = (
    Row("model.embed_tokens.weight", "embed", "V D", "V D"),
    Row(_LAYER + "input_layernorm.weight", _BLOCK + "attention_norm.scale", "D", "D"),
    Row(_ATTENTION + "q_proj.weight", _BLOCK + "attention.q.kernel", "NH D", "D N H"),
    Row(_ATTENTION + "k_proj.weight", _BLOCK + "attention.k.kernel", "KH D", "D K H"),
    Row(_ATTENTION + "v_proj.weight", _BLOCK + "attention.v.kernel", "KH D", "D K H"),
    Row(_ATTENTION + "o_proj.weight", _BLOCK + "attention.o.kernel", "D NH", "N H D"),
    Row(_LAYER + "post_attention_layernorm.weight", _BLOCK + "mlp_norm.scale", "D", "D"),
    Row(_MLP + "gate_proj.weight", _BLOCK + "mlp.gate.kernel", "F D", "D F"),
    Row(_MLP + "up_proj.weight", _BLOCK + "mlp.up.kernel", "F D", "D F"),
    Row(_MLP + "down_proj.weight", _BLOCK + "mlp.down.kernel", "D F", "F D"),
    Row("model.norm.weight", "final_norm.scale", "D", "D"),
    Row("lm_head.weight", "head", "V D", "D V", _untied),
)
_QKV_BIAS = (
    Row(_ATTENTION + "q_proj.bias", _BLOCK + "attention.q.bias", "NH", "N H", _qkv_bias),
    Row(_ATTENTION + "k_proj.bias", _BLOCK + "attention.k.bias", "KH", "K H", _qkv_bias),
    Row(_ATTENTION + "v_proj.bias", _BLOCK + "attention.v.bias", "KH", "K H", _qkv_bias),
)
_O_BIAS = (Row(_ATTENTION + "o_proj.bias", _BLOCK + "attention.o.bias", "D", "D", _o_bias),)
_MLP_BIAS = (
    Row(_MLP + "gate_proj.bias", _BLOCK + "mlp.gate.bias", "F", "F", _mlp_bias),
    Row(_MLP + "up_proj.bias", _BLOCK + "mlp.up.bias", "F", "F", _mlp_bias),
    Row(_MLP + "down_proj.bias", _BLOCK + "mlp.down.bias", "D", "D", _mlp_bias),
)
_QK_NORM = (
    Row(_ATTENTION + "q_norm.weight", _BLOCK + "attention.q_norm.scale", "H", "H"),
    Row(_ATTENTION + "k_norm.weight", _BLOCK + "attention.k_norm.scale", "H", "H"),
)

TABLES: dict[str, tuple[Row, ...]] = {
    "llama": _COMMON + _QKV_BIAS + _O_BIAS + _MLP_BIAS,
    "qwen2": _COMMON + _QKV_BIAS,
    "qwen3": _COMMON + _QKV_BIAS + _O_BIAS + _QK_NORM,
}

# Tensors that old checkpoints have though they follow from the config.
IGNORED = re.compile(r"model\.(layers\.\d+\.self_attn\.)?rotary_emb\.inv_freq")

# If a model's head is tied to its embedding, the file may have the head, too. Both must then be equal bit for bit.
HEAD, EMBEDDING = "lm_head.weight", "model.embed_tokens.weight"


def rows(config: ModelConfig) -> Iterator[Row]:
    """Every tensor that a checkpoint of this config has, each once, with the numbers of the layers filled in."""
    table = [row for row in TABLES[config.architecture] if row.when(config)]
    yield from (row for row in table if row.path == "embed")
    for layer in range(config.n_layers):
        for row in table:
            if "{l}" in row.name:
                name, path = row.name.replace("{l}", str(layer)), row.path.replace("{l}", str(layer))
                yield dataclasses.replace(row, name=name, path=path)
    yield from (row for row in table if "{l}" not in row.name and row.path != "embed")
