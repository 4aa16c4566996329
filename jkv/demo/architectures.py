"""The two demo models: three layers, four query heads over two KV heads, tied head; about half a million parameters."""

from jkv.config import ModelConfig
from jkv.demo import tokenizer

_SHARED = dict(d_model=128, n_layers=3, n_heads=4, n_kv_heads=2, head_dim=32, tied_head=True, max_positions=512)
_VARYING = {
    "llama": dict(d_ff=256, rope_theta=1e4, rms_eps=1e-5),
    "qwen2": dict(d_ff=320, rope_theta=1e6, qkv_bias=True),
}


def model_config(arch: str) -> ModelConfig:
    """The demo model of an architecture, 'llama' or 'qwen2'."""
    words = tokenizer.vocabulary()
    return ModelConfig(
        architecture=arch,  # type: ignore[arg-type]
        vocab_size=len(words),
        bos_id=words[tokenizer.BOS],
        eos_ids=(words[tokenizer.EOS],),
        **_SHARED,
        **_VARYING[arch],
    )
