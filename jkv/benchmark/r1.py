"""Configs of the models that are measured, with random weights: two of R1-Distill, and a tiny one to try the script."""

import dataclasses

from jkv.models.config import ModelConfig
from jkv.planning.models import model_config


def _shape(name: str) -> ModelConfig:
    """A shipped config without end-of-sequence tokens: random weights draw any token, and rows should not end."""
    return dataclasses.replace(model_config(name), bos_id=None, eos_ids=())


R1 = {name: _shape(name) for name in ("r1-llama-8b", "r1-qwen-7b")}
TINY = {"tiny-qwen": ModelConfig("qwen2", 256, 48, 96, 1, 6, 2, 16, 1e4, qkv_bias=True)}
