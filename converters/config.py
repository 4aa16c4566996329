"""Hugging Face ``config.json`` <-> ``ModelConfig``.

A field that asks for something that jkv doesn't support is an error that names it. Fields that are absent have the
defaults of the classes of transformers 5 (LlamaConfig, Qwen2Config, Qwen3Config).
"""

from pathlib import Path
from typing import Any

from converters.fields import Fields
from converters.files import read_json, write_json
from converters.rope import read_rope, write_rope
from jkv.errors import UserError
from jkv.models.config import Architecture, ModelConfig

CONFIG, GENERATION = "config.json", "generation_config.json"
_CLASSES: dict[Architecture, str] = {
    "llama": "LlamaForCausalLM",
    "qwen2": "Qwen2ForCausalLM",
    "qwen3": "Qwen3ForCausalLM",
}
_MAX_LAYERS = 4096
_EXPERTS = ("num_experts", "num_local_experts", "n_routed_experts")


def read_config(directory: Path) -> ModelConfig:
    """The config of a model's directory, Hugging Face or converted.

    End-of-sequence ids of ``generation_config.json``, if it has some, replace those of ``config.json``.

    Raises:
        UserError: something is missing, malformed or not supported.
    """
    if not directory.is_dir():
        raise UserError("no such directory", where=str(directory))
    if not (directory / CONFIG).exists():
        mend = "give a Hugging Face model directory"
        raise UserError(f"{CONFIG} isn't there", where=str(directory), mend=mend)
    generation = directory / GENERATION
    return from_hf(
        read_json(directory / CONFIG),
        read_json(generation) if generation.exists() else {},
        where=str(directory / CONFIG),
        generation_where=str(generation),
    )


def write_config(config: ModelConfig, directory: Path, dtype: str) -> None:
    """Write ``config.json`` for transformers.

    Args:
        config: the model's.
        directory: where to.
        dtype: of its weights.

    Raises:
        UserError: transformers has no form for this config.
    """
    write_json(directory / CONFIG, {**to_hf(config), "dtype": dtype})


def from_hf(
    data: dict[str, Any],
    generation: dict[str, Any] | None = None,
    *,
    where: str = CONFIG,
    generation_where: str = GENERATION,
) -> ModelConfig:
    """The ModelConfig that a config.json describes.

    Args:
        data: the file's content.
        generation: the content of generation_config.json, if there is one.
        where: what the first file is called in messages.
        generation_where: what the second is called.

    Raises:
        UserError: something is missing, malformed or not supported.
    """
    fields = Fields(data, where)
    kind = fields.text("model_type")
    architecture: Architecture | None = next((known for known in _CLASSES if known == kind), None)
    if architecture is None:
        mixture = "a mixture of experts isn't supported" if kind.endswith(("moe", "mixtral")) else ""
        raise fields.error("model_type", f"one of {', '.join(_CLASSES)}", mend=mixture)
    _refuse_unsupported(fields)
    llama, qwen2, qwen3 = (architecture == name for name in ("llama", "qwen2", "qwen3"))
    vocab_size, n_heads, d_model = (
        fields.integer(name) for name in ("vocab_size", "num_attention_heads", "hidden_size")
    )
    max_positions = fields.integer("max_position_embeddings", 2048 if llama else 32768)
    theta, scaling = read_rope(fields, max_positions)
    attention_bias = not qwen2 and fields.boolean("attention_bias", False)
    try:
        return ModelConfig(
            architecture=architecture,
            vocab_size=vocab_size,
            d_model=d_model,
            d_ff=fields.integer("intermediate_size"),
            n_layers=fields.integer("num_hidden_layers", most=_MAX_LAYERS),
            n_heads=n_heads,
            n_kv_heads=_n_kv_heads(fields, n_heads, llama),
            head_dim=_head_dim(fields, n_heads, d_model, qwen3),
            rope_theta=theta,
            rope_scaling=scaling,
            rms_eps=fields.number("rms_norm_eps", 1e-6),
            qkv_bias=qwen2 or attention_bias,
            o_bias=attention_bias,
            mlp_bias=llama and fields.boolean("mlp_bias", False),
            qk_norm=qwen3,
            tied_head=fields.boolean("tie_word_embeddings", False),
            max_positions=max_positions,
            bos_id=_bos_id(fields, vocab_size, llama),
            eos_ids=_eos_ids(fields, Fields(generation or {}, generation_where), vocab_size, llama),
        )
    except ValueError as error:
        raise UserError(str(error), where=where) from None


def to_hf(config: ModelConfig) -> dict[str, Any]:
    """The content of a config.json from which transformers builds the same model, and `from_hf` the same config.

    Raises:
        UserError: transformers has no form for this config.
    """
    _check_expressible(config)
    eos: Any = list(config.eos_ids) if len(config.eos_ids) > 1 else next(iter(config.eos_ids), None)
    data = {
        "architectures": [_CLASSES[config.architecture]],
        "model_type": config.architecture,
        "vocab_size": config.vocab_size,
        "hidden_size": config.d_model,
        "intermediate_size": config.d_ff,
        "num_hidden_layers": config.n_layers,
        "num_attention_heads": config.n_heads,
        "num_key_value_heads": config.n_kv_heads,
        "head_dim": config.head_dim,
        "hidden_act": "silu",
        "max_position_embeddings": config.max_positions,
        "rms_norm_eps": config.rms_eps,
        "tie_word_embeddings": config.tied_head,
        "bos_token_id": config.bos_id,
        "eos_token_id": eos,
        **write_rope(config.rope_theta, config.rope_scaling),
    }
    if config.architecture != "qwen2":
        data["attention_bias"] = config.qkv_bias
    if config.architecture == "llama":
        data["mlp_bias"] = config.mlp_bias
    else:
        data["use_sliding_window"] = False
    return data


def _refuse_unsupported(fields: Fields) -> None:
    """Raise UserError for a field that would change the model's output and isn't implemented."""
    if fields.present("quantization_config"):
        raise fields.error("quantization_config", "none: quantized checkpoints aren't supported")
    for name in _EXPERTS:
        if fields.present(name) and fields.integer(name, least=0) > 0:
            raise fields.error(name, "none: a mixture of experts isn't supported")
    if fields.text("hidden_act", "silu") not in ("silu", "swish"):
        raise fields.error("hidden_act", "silu: no other activation is supported")
    if fields.present("use_sliding_window") and fields.boolean("use_sliding_window", False):
        raise fields.error("use_sliding_window", "false: sliding-window attention isn't supported")
    layer_types = fields.data.get("layer_types") or []
    if not isinstance(layer_types, list) or any(kind != "full_attention" for kind in layer_types):
        raise fields.error("layer_types", "full_attention for every layer: no other attention is supported")


def _n_kv_heads(fields: Fields, n_heads: int, llama: bool) -> int:
    """KV heads. null means as many as query heads; so does an absent field for Llama, while for Qwen it means 32."""
    if "num_key_value_heads" in fields.data and not fields.present("num_key_value_heads"):
        return n_heads
    return fields.integer("num_key_value_heads", n_heads if llama else 32)


def _head_dim(fields: Fields, n_heads: int, d_model: int, qwen3: bool) -> int:
    """The head's dimension. If the field is absent, it is 128 for Qwen 3 and D / N for the others."""
    if fields.present("head_dim"):
        return fields.integer("head_dim")
    if qwen3:
        return 128
    if d_model % n_heads:
        raise fields.error("hidden_size", f"a multiple of num_attention_heads ({n_heads}), as head_dim isn't given")
    return d_model // n_heads


def _bos_id(fields: Fields, vocab_size: int, llama: bool) -> int | None:
    """The begin-of-sequence id. If the field is absent, it is 1 for Llama, and Qwen has none."""
    if "bos_token_id" not in fields.data:
        return 1 if llama and vocab_size > 1 else None
    ids = fields.ids("bos_token_id", vocab_size)
    if len(ids) > 1:
        raise fields.error("bos_token_id", "one token id or null")
    return ids[0] if ids else None


def _eos_ids(fields: Fields, generation: Fields, vocab_size: int, llama: bool) -> tuple[int, ...]:
    """The end-of-sequence ids. If no file has them, it is 2 for Llama, and Qwen has none."""
    if generation.present("eos_token_id"):
        return generation.ids("eos_token_id", vocab_size)
    if "eos_token_id" not in fields.data:
        return (2,) if llama and vocab_size > 2 else ()
    return fields.ids("eos_token_id", vocab_size)


def _check_expressible(config: ModelConfig) -> None:
    """Raise UserError for a config that no class of transformers can express."""
    kind = config.architecture
    biases = {
        "llama": config.qkv_bias == config.o_bias,
        "qwen2": config.qkv_bias and not config.o_bias and not config.mlp_bias,
        "qwen3": config.qkv_bias == config.o_bias and not config.mlp_bias,
    }
    if not biases[kind]:
        shown = f"qkv_bias={config.qkv_bias}, o_bias={config.o_bias}, mlp_bias={config.mlp_bias}"
        raise UserError(f"a Hugging Face {kind} config can't express {shown}")
    if config.qk_norm != (kind == "qwen3"):
        raise UserError(f"a Hugging Face {kind} config can't express qk_norm={config.qk_norm}")
    if kind == "llama" and config.d_model % config.n_heads:
        raise UserError(f"transformers refuses a llama of d_model {config.d_model} with {config.n_heads} heads")
