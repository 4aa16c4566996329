"""transformers' ``generate`` on the same GPU, in a process of its own: JAX and PyTorch don't share a GPU's memory.

``python -m jkv.benchmark.gpu_rival`` is that process. It reads a request from stdin and writes the figures to stdout,
both as JSON.
"""

import json
import subprocess
import sys
import time
from typing import Any

from jkv.models.config import Llama3Scaling, ModelConfig


def ask(config: ModelConfig, *, batch: int, prompt: int, new_tokens: int, seconds: float) -> dict[str, Any]:
    """Measure ``generate`` with a full cache (DynamicCache), greedy, with random weights, in another process.

    Args:
        config: the model's.
        batch: rows.
        prompt: tokens of each prompt.
        new_tokens: tokens that each is continued by.
        seconds: how long the process may take in all.

    Returns:
        The cell: the figures of a decode step without the prompt; or why there are none.
    """
    scaling = config.rope_scaling
    rope: dict[str, Any] = {"rope_type": "default", "rope_theta": config.rope_theta}
    if isinstance(scaling, Llama3Scaling):
        rope |= {
            "rope_type": "llama3", "factor": scaling.factor, "low_freq_factor": scaling.low_freq_factor,
            "high_freq_factor": scaling.high_freq_factor,
            "original_max_position_embeddings": scaling.original_max_positions,
        }  # fmt: skip
    request = {
        "architecture": config.architecture, "batch": batch, "prompt": prompt, "new_tokens": new_tokens,
        "settings": {
            "vocab_size": config.vocab_size, "hidden_size": config.d_model, "intermediate_size": config.d_ff,
            "num_hidden_layers": config.n_layers, "num_attention_heads": config.n_heads,
            "num_key_value_heads": config.n_kv_heads, "rms_norm_eps": config.rms_eps, "rope_parameters": rope,
            "max_position_embeddings": config.max_positions,
        },
    }  # fmt: skip
    command = [sys.executable, "-m", "jkv.benchmark.gpu_rival"]
    try:
        done = subprocess.run(command, input=json.dumps(request), capture_output=True, text=True, timeout=seconds)
    except subprocess.TimeoutExpired:
        return {"skipped": f"took longer than {seconds:.0f} s"}
    if done.returncode:
        return {"skipped": (done.stderr.strip().splitlines() or [f"left with code {done.returncode}"])[-1]}
    return json.loads(done.stdout.splitlines()[-1])


def _measure(request: dict[str, Any]) -> dict[str, Any]:
    """The cell that a request asks for."""
    try:
        import torch
        import transformers
    except ImportError as error:
        return {"skipped": f"{error.name} is not installed"}
    if not torch.cuda.is_available():
        return {"skipped": f"PyTorch {torch.__version__} sees no CUDA GPU"}
    kinds = {
        "llama": (transformers.LlamaConfig, transformers.LlamaForCausalLM),
        "qwen2": (transformers.Qwen2Config, transformers.Qwen2ForCausalLM),
    }
    settings, kind = kinds[request["architecture"]]
    torch.manual_seed(0)
    torch.set_default_dtype(torch.bfloat16)
    with torch.device("cuda"):
        model = kind(settings(**request["settings"], bos_token_id=None, eos_token_id=None)).eval()
        ids = torch.randint(3, request["settings"]["vocab_size"], (request["batch"], request["prompt"]))

    def seconds(new_tokens: int) -> float:
        """Seconds that reading the prompts and drawing ``new_tokens`` takes."""
        torch.cuda.synchronize()
        started = time.perf_counter()
        with torch.inference_mode():
            out = model.generate(
                ids, attention_mask=torch.ones_like(ids), do_sample=False, min_new_tokens=new_tokens,
                max_new_tokens=new_tokens, pad_token_id=0,
            )  # fmt: skip
        torch.cuda.synchronize()
        assert out.shape[1] == request["prompt"] + new_tokens
        return time.perf_counter() - started

    new_tokens = request["new_tokens"]
    try:
        seconds(2)
        # Both read the prompt, so their difference is the time of ``new_tokens`` decode steps.
        short, long = seconds(1), seconds(1 + new_tokens)
    except torch.cuda.OutOfMemoryError:
        return {"skipped": "out of memory"}
    step = (long - short) / new_tokens
    return {
        "tokens_s": request["batch"] / step, "ms_per_step": 1e3 * step, "batch": request["batch"],
        "mean_slots": request["prompt"] + new_tokens / 2, "new_tokens": new_tokens,
        "torch": torch.__version__, "transformers": transformers.__version__,
    }  # fmt: skip


if __name__ == "__main__":
    print(json.dumps(_measure(json.load(sys.stdin))))
