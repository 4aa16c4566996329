"""``python -m converters``: exit codes, one line on stderr, and nothing half done."""

import subprocess
import sys

import pytest

from converters.__main__ import main
from jkv.errors import UserError
from jkv.terminal.command import run


def command(*words) -> int:
    """Run in this process, as the command line would: the exit code."""
    with pytest.raises(SystemExit) as leaving:
        run(main, [str(word) for word in words])
    assert isinstance(leaving.value.code, int)
    return leaving.value.code


def test_there_and_back_is_bit_equal(checkpoint, tmp_path, capsys):
    (checkpoint.directory / "generation_config.json").write_text('{"eos_token_id": 2}')
    (checkpoint.directory / "chat_template.jinja").write_text("{{ messages }}")
    assert command(checkpoint.directory, tmp_path / "converted") == 0
    assert command(tmp_path / "converted", tmp_path / "back", "--to-hf") == 0
    assert capsys.readouterr() == ("", "")
    assert {path.name: path.read_bytes() for path in (tmp_path / "back").iterdir()} == {
        path.name: path.read_bytes() for path in checkpoint.directory.iterdir()
    }
    assert sorted(path.name for path in tmp_path.iterdir()) == ["back", "converted", "model"]


def test_exit_codes_of_the_process(checkpoint, tmp_path):
    words = [sys.executable, "-m", "converters", checkpoint.directory, tmp_path / "new"]
    again = f"error: {tmp_path}/new: exists and isn't an empty directory; give another DST\n"
    for expected, error in [(0, ""), (2, again)]:
        done = subprocess.run(words, capture_output=True, text=True, check=False)
        assert (done.returncode, done.stdout, done.stderr) == (expected, "", error)


@pytest.mark.parametrize(
    ("words", "error"),
    [
        (["nowhere", "out"], "error: no such model: 'nowhere' is not a demo model (demo-llama, demo-qwen), "
                             "not a directory, not a hub id (org/name)\n"),
        ([], "error: the following arguments are required: source, destination\n"),
        (["a", "b", "--fast"], "error: unrecognized arguments: --fast\n"),
        (["a", "b", "--dtype", "int8"], "error: argument --dtype: invalid choice: 'int8' "),
    ],
)  # fmt: skip
def test_mistakes_on_the_command_line(words, error, capsys):
    assert command(*words) == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert err.startswith(error)
    assert err.count("\n") == 1


def test_wrong_direction(checkpoint, tmp_path, capsys):
    assert command(checkpoint.directory, tmp_path / "x", "--to-hf") == 2
    error = f"error: {checkpoint.directory}: isn't a converted directory; leave out --to-hf to convert it\n"
    assert capsys.readouterr().err == error
    assert command(checkpoint.directory, tmp_path / "converted") == 0
    assert command(tmp_path / "converted", tmp_path / "x") == 2
    error = f"error: {tmp_path}/converted: is converted already; give --to-hf to convert it back\n"
    assert capsys.readouterr().err == error


def test_destination(checkpoint, tmp_path, capsys):
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "mine.txt").write_text("precious")
    (tmp_path / "file").write_text("")
    for name in ("full", "file"):
        assert command(checkpoint.directory, tmp_path / name) == 2
        assert capsys.readouterr().err.endswith("exists and isn't an empty directory; give another DST\n")
    assert [path.name for path in (tmp_path / "full").iterdir()] == ["mine.txt"]
    (tmp_path / "empty").mkdir()
    assert command(checkpoint.directory, tmp_path / "empty") == 0
    assert command(checkpoint.directory, tmp_path / "made" / "deeper") == 0


def test_failure_leaves_nothing_behind(checkpoint, tmp_path, capsys):
    checkpoint.weights.write_bytes(b"short")
    assert command(checkpoint.directory, tmp_path / "new") == 2
    assert capsys.readouterr().err.startswith(f"error: {checkpoint.weights}: can't be read as safetensors (")
    assert [path.name for path in tmp_path.iterdir()] == ["model"]


def test_full_disk(checkpoint, tmp_path, capsys, monkeypatch):
    def full(descriptor):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("jkv.files.whole.os.fsync", full)
    assert command(checkpoint.directory, tmp_path / "new") == 2
    assert capsys.readouterr().err == "error: No space left on device\n"
    assert [path.name for path in tmp_path.iterdir()] == ["model"]


def test_run_keeps_bugs_visible():
    def broken(argv):
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        run(broken)


@pytest.mark.parametrize(
    ("failure", "code", "error"),
    [
        (UserError("bad\n  thing", where="here", mend="do\nthis"), 2, "error: here: bad thing; do this\n"),
        (FileNotFoundError(2, "No such file or directory", "a.yaml"), 2, "error: a.yaml: No such file or directory\n"),
        (KeyboardInterrupt(), 130, "interrupted\n"),
    ],
)
def test_run(failure, code, error, capsys):
    def fails(argv):
        raise failure

    with pytest.raises(SystemExit) as leaving:
        run(fails)
    assert leaving.value.code == code
    assert capsys.readouterr().err == error
