"""A tokenizer of bytes with a chat template that begins a thought, as R1's does."""

import pathlib
from typing import Any

import tokenizers
import transformers

THINK, THINK_END = "<think>", "</think>"
VOCABULARY = 320  # a model's that has room for all of its tokens


def save_tokenizer(directory: pathlib.Path) -> Any:
    """Write it into a model's directory; returns the transformers tokenizer."""
    backend = tokenizers.Tokenizer(tokenizers.models.BPE())
    backend.pre_tokenizer = tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = tokenizers.decoders.ByteLevel()
    trainer = tokenizers.trainers.BpeTrainer(
        vocab_size=300, initial_alphabet=tokenizers.pre_tokenizers.ByteLevel.alphabet(),
        special_tokens=["<pad>", "<bos>", "<eos>"], show_progress=False,
    )  # fmt: skip
    backend.train_from_iterator(["the value of $x$ is \\frac{1}{2} and \\sqrt{3}"] * 9, trainer)
    fast = transformers.PreTrainedTokenizerFast(tokenizer_object=backend, bos_token="<bos>", eos_token="<eos>")
    fast.add_tokens([THINK, THINK_END])
    fast.chat_template = (
        "<bos>{% for m in messages %}[{{ m.role }}]{{ m.content }}{% endfor %}"
        "{% if add_generation_prompt %}[assistant]<think>{% endif %}"
    )
    fast.save_pretrained(directory)
    return fast
