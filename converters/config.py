"""Hugging Face ``config.json`` <-> ``ModelConfig``. What jkv doesn't support is refused by name.

Defaults of absent fields are those of the transformers classes (LlamaConfig, Qwen2Config, Qwen3Config; 5.x).
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
    """The config of a Hugging Face directory; ``generation_config.json`` has the last word on end-of-sequence ids.

    Raises UserError for what is missing, malformed or not supported.
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
    """Write ``config.json`` for transformers."""
    write_json(directory / CONFIG, {**to_hf(config), "dtype": dtype})


def from_hf(
    data: dict[str, Any],
    generation: dict[str, Any] | None = None,
    *,
    where: str = CONFIG,
    generation_where: str = GENERATION,
) -> ModelConfig:
    """The ModelConfig that a config.json's content describes. ``where`` names the file in error messages."""
    fields = Fields(data, where)
    kind = fields.text("model_type")
    architecture: Architecture | None = next((known for known in _CLASSES if known == kind), None)
    if architecture is None:
        mixture = "a mixture of experts isn't supported" if kind.endswith(("moe", "mixtral")) else ""
        raise fields.error("model_type", f"one of {', '.join(_CLASSES)}", mend=mixture)
    _refuse(fields)
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
    """The content of a config.json from which transformers builds the same model; ``from_hf`` inverts it.

    Raises UserError when the architecture's Hugging Face class can't express the config.
    """
    _expressible(config)
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


def _refuse(fields: Fields) -> None:
    # What would change the model's output and isn't implemented.
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
    if "num_key_value_heads" in fields.data and not fields.present("num_key_value_heads"):
        return n_heads
    return fields.integer("num_key_value_heads", n_heads if llama else 32)


def _head_dim(fields: Fields, n_heads: int, d_model: int, qwen3: bool) -> int:
    if fields.present("head_dim"):
        return fields.integer("head_dim")
    if qwen3:
        return 128
    if d_model % n_heads:
        raise fields.error("hidden_size", f"a multiple of num_attention_heads ({n_heads}), as head_dim isn't given")
    return d_model // n_heads


def _bos_id(fields: Fields, vocab_size: int, llama: bool) -> int | None:
    if "bos_token_id" not in fields.data:
        return 1 if llama and vocab_size > 1 else None
    ids = fields.ids("bos_token_id", vocab_size)
    if len(ids) > 1:
        raise fields.error("bos_token_id", "one token id or null")
    return ids[0] if ids else None


def _eos_ids(fields: Fields, generation: Fields, vocab_size: int, llama: bool) -> tuple[int, ...]:
    if generation.present("eos_token_id"):
        return generation.ids("eos_token_id", vocab_size)
    if "eos_token_id" not in fields.data:
        return (2,) if llama and vocab_size > 2 else ()
    return fields.ids("eos_token_id", vocab_size)


def _expressible(config: ModelConfig) -> None:
    kind = config.architecture
    biases = {
        "llama": config.qkv_bias == config.o_bias,
        "qwen2": config.qkv_bias and not config.o_bias and not config.mlp_bias,
        "qwen3": config.qkv_bias == config.o_bias and not config.mlp_bias,
    }
    if not biases[kind]:
        shown = f"qkv_bias={config.qkv_bias}, o_bias={config.o_bias}, mlp_bias={config.mlp_bias}"
        raise UserError(f"a Hugging Face {kind} config can't say {shown}")
    if config.qk_norm != (kind == "qwen3"):
        raise UserError(f"a Hugging Face {kind} config can't say qk_norm={config.qk_norm}")
    if kind == "llama" and config.d_model % config.n_heads:
        raise UserError(f"transformers refuses a llama of d_model {config.d_model} with {config.n_heads} heads")
