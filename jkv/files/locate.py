"""Where a model is: a demo checkpoint, a directory, or the Hugging Face hub."""

import os
import re
from pathlib import Path

from jkv.errors import UserError
from jkv.files.shipped import OF_HUB

DEMOS = ("demo-llama", "demo-qwen")
CHECKPOINTS = Path(__file__).parents[1] / "demo" / "checkpoints"
_HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*")
_HUB_FILES = ["model*.safetensors", "*.json", "tokenizer.model", "merges.txt", "*.jinja"]


def locate(name: str | Path) -> Path:
    """The directory of a model. One on the Hugging Face hub is downloaded; of its files only weights in safetensors,
    configs, the tokenizer and the chat template.

    Args:
        name: demo-llama, demo-qwen, a directory, or a hub id 'org/name'.

    Raises:
        UserError: there is no such model, or it can't be downloaded.
    """
    text = str(name)
    path = Path(os.path.expanduser(text))  # Path.expanduser would raise for the home of an unknown user
    if text in DEMOS:
        if not (CHECKPOINTS / text).is_dir():
            raise UserError("the demo checkpoint isn't there", where=str(CHECKPOINTS / text), mend="install jkv again")
        return CHECKPOINTS / text
    if text and path.is_dir():
        return path
    if text and path.exists():
        raise UserError("is a file, expected the directory of a model", where=text)
    if _HUB_ID.fullmatch(text):
        return _fetch(text)
    raise _no_such_model(text)


def is_on_hub(name: str) -> bool:
    """Whether ``name`` can only be a hub id: it has the form of one, and there is no such file or directory."""
    return bool(_HUB_ID.fullmatch(name)) and not Path(os.path.expanduser(name)).exists()


def _no_such_model(text: str) -> UserError:
    hub = next((id for id, ours in OF_HUB.items() if ours == text), None)
    if hub is not None:
        mend = f"give the checkpoint, {hub} or its directory"
        return UserError(f"{text} is the name of a config, which has no weights", where="--model", mend=mend)
    tried = f"not a demo model ({', '.join(DEMOS)}), not a directory, not a hub id (org/name)"
    return UserError(f"no such model: {text!r} is {tried}")


def _fetch(hub_id: str) -> Path:
    import huggingface_hub

    try:
        return Path(huggingface_hub.snapshot_download(hub_id, allow_patterns=_HUB_FILES, ignore_patterns=["*/*"]))
    except Exception as error:  # offline, absent, gated, misspelt, proxy: each raises another type
        reason = next(iter(str(error).splitlines()), "")
        what = f"no such model: {hub_id!r} is not a directory, and the hub says {type(error).__name__} ({reason})"
        mend = f"check the name and the network, or use a demo model ({', '.join(DEMOS)})"
        raise UserError(what, mend=mend) from None
