"""The demo models' tokenizer, in which each word is one token, in Hugging Face format with a chat template."""

import json
import pathlib

from tokenizers import AddedToken, Tokenizer
from tokenizers.decoders import ByteLevel as ByteLevelDecoder
from tokenizers.models import BPE
from tokenizers.pre_tokenizers import ByteLevel

from jkv.demo import task

PAD, BOS, EOS, UNKNOWN, THINK, END_THINK = SPECIAL = ("<pad>", "<bos>", "<eos>", "<unk>", "<think>", "</think>")

# A user's message becomes '<bos> MESSAGE <think>', an assistant's message its text and <eos>.
CHAT_TEMPLATE = (
    "{{ bos_token }}"
    "{% for message in messages %}"
    "{{ ' ' + message['content'] | trim }}"
    "{% if message['role'] == 'assistant' %}{{ ' ' + eos_token }}{% endif %}"
    "{% endfor %}"
    "{% if add_generation_prompt %}{{ ' <think>' }}{% endif %}"
)


def vocabulary() -> dict[str, int]:
    """The token id of each word: special tokens, digits, names, words of the computation, words of the filler.

    Checkpoints depend on the order: new words may only be appended.
    """
    work = [*"+-*=;?.", "now", "so", "keep", "drop", "check", "ok"]
    filler = " ".join(sentence for pool in task.FILLER for sentence in pool).split()
    words = dict.fromkeys([*SPECIAL, *task.DIGITS, *task.NAMES, *work, *filler])
    return {word: i for i, word in enumerate(words)}


def build() -> Tokenizer:
    """The fast tokenizer. It adds no tokens of its own: prompts contain their ``<bos>``.

    Every word is an added token that begins with a space; the longest match wins, and nothing is left for BPE to split
    or merge. The reason is AutoTokenizer: it rebuilds the tokenizer of any Qwen2 checkpoint as byte-level BPE and keeps
    only the vocabulary and the added tokens of tokenizer.json, so that a word-level model would lose its spaces.

    The words in angle brackets don't begin with a space, and a space before them is dropped ('f<think> now').
    ``<think>`` and ``</think>`` are not special tokens, so that decoding with skip_special_tokens keeps them and the
    answer can be separated from the thought.
    """
    words = {_text(word): i for word, i in vocabulary().items()}
    tokenizer = Tokenizer(BPE(words, [], unk_token=UNKNOWN, fuse_unk=True))
    tokenizer.pre_tokenizer = ByteLevel(add_prefix_space=False, use_regex=False)
    tokenizer.decoder = ByteLevelDecoder()
    tokenizer.add_tokens(
        [AddedToken(text, normalized=False, lstrip=text in SPECIAL, special=text in SPECIAL[:4]) for text in words]
    )
    return tokenizer


def _text(word: str) -> str:
    return word if word in SPECIAL else f" {word}"


def save(directory: pathlib.Path, max_positions: int) -> None:
    """Write tokenizer.json and tokenizer_config.json, which has the chat template.

    Args:
        directory: an existing directory.
        max_positions: tokens that the model can read at most.
    """
    build().save(str(directory / "tokenizer.json"))
    settings = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "bos_token": BOS,
        "eos_token": EOS,
        "pad_token": PAD,
        "unk_token": UNKNOWN,
        "add_bos_token": False,
        "add_eos_token": False,
        "clean_up_tokenization_spaces": False,
        "model_max_length": max_positions,
        "chat_template": CHAT_TEMPLATE,
    }
    (directory / "tokenizer_config.json").write_text(json.dumps(settings, indent=2) + "\n", "utf-8")
