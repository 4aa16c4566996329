"""Convert a Hugging Face checkpoint (Llama, Qwen2 or Qwen3) to a directory that jkv loads without rearranging, or back.

If the checkpoint has DynTS's importance predictor (is_head.0|2|4.weight), with or without a model, that becomes
predictor.safetensors.
"""

import contextlib
import os
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

from jkv.errors import UserError
from jkv.terminal.command import run

# Files that are copied as they are, in both directions.
SIDE_FILES = (
    "generation_config.json",
    "tokenizer.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
    "tokenizer.model",
    "vocab.json",
    "merges.txt",
    "chat_template.jinja",
    "chat_template.json",
    # These are read by policies of jkv.
    "predictor.safetensors",
    "predictor.json",
    "query_statistics.safetensors",
)


def main(argv: list[str] | None = None) -> None:
    """Parse the command line and convert.

    Raises:
        UserError: an unknown flag, or something that `convert` finds wrong.
    """
    from jkv.terminal.flags import Parser

    parser = Parser(prog="python -m converters", description=__doc__, allow_abbrev=False)
    parser.add_argument("source", help="a Hugging Face directory or hub id; with --to-hf a converted directory")
    parser.add_argument("destination", help="a directory that is empty or isn't there yet")
    parser.add_argument("--to-hf", action="store_true", help="convert back to a Hugging Face directory")
    parser.add_argument(
        "--dtype",
        choices=["float32", "bfloat16", "float16"],
        help="dtype of written weights (default: the source's)",
    )
    args = parser.parse_args(argv)
    convert(args.source, Path(args.destination), to_hf=args.to_hf, dtype=args.dtype)


def convert(source: str, destination: Path, *, to_hf: bool = False, dtype: str | None = None) -> None:
    """Convert a Hugging Face checkpoint to a converted directory, or back.

    Args:
        source: a Hugging Face directory or hub id; with ``to_hf`` a converted directory.
        destination: a directory that is empty or isn't there yet. It appears only when all of it is written.
        to_hf: whether to convert back.
        dtype: of the written weights: float32, bfloat16 or float16; None for the source's.

    Raises:
        UserError: the source can't be read, isn't supported, or is to be converted in the wrong direction; or the
            destination isn't empty.
    """
    from converters.hf import read_hf, read_predictor, write_hf
    from converters.orbax_io import is_converted, read_converted, write_converted
    from jkv.files.locate import locate
    from jkv.models.predictor import FILE, save_tensors

    directory = locate(source)
    if to_hf and not is_converted(directory):
        raise UserError("isn't a converted directory", where=str(source), mend="leave out --to-hf to convert it")
    if not to_hf and is_converted(directory):
        raise UserError("is converted already", where=str(source), mend="give --to-hf to convert it back")
    with _new_directory(destination) as made:
        if to_hf:
            write_hf(read_converted(directory, dtype), made)
        else:
            predictor = read_predictor(directory)
            if (directory / "config.json").exists() or not predictor:
                write_converted(read_hf(directory, dtype), made)
            if predictor:
                save_tensors(made / FILE, predictor)
        for name in SIDE_FILES:
            if (directory / name).is_file():
                shutil.copyfile(directory / name, made / name)


@contextlib.contextmanager
def _new_directory(destination: Path) -> Iterator[Path]:
    """A directory to write into, which becomes ``destination`` when the block ends well and is removed if it doesn't.

    It is made beside the destination, so that it can be renamed, and a crash leaves no half-written model there.
    """
    if destination.exists() and not (destination.is_dir() and not any(destination.iterdir())):
        raise UserError("exists and isn't an empty directory", where=str(destination), mend="give another DST")
    destination.parent.mkdir(parents=True, exist_ok=True)
    made = Path(tempfile.mkdtemp(prefix=f".{destination.name}.", suffix=".part", dir=destination.parent))
    try:
        made.chmod(0o755)
        yield made
        os.replace(made, destination)
    except BaseException:
        shutil.rmtree(made, ignore_errors=True)
        raise


if __name__ == "__main__":
    run(main)
