"""Shapes of the models that measurements are made at, with random weights: two of R1-Distill and a tiny one."""

from jkv.config import Llama3Scaling, ModelConfig

R1 = {
    "r1-llama-8b": ModelConfig(
        "llama", 128256, 4096, 14336, 32, 32, 8, 128, 5e5, Llama3Scaling(8.0, 1.0, 4.0, 8192), rms_eps=1e-5
    ),
    "r1-qwen-7b": ModelConfig("qwen2", 152064, 3584, 18944, 28, 28, 4, 128, 1e4, qkv_bias=True),
}
TINY = {"tiny-qwen": ModelConfig("qwen2", 256, 48, 96, 1, 6, 2, 16, 1e4, qkv_bias=True)}
