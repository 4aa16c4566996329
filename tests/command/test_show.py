"""What a person sees: on a terminal, in a file, without Unicode, of hostile text."""

import io
import os
import pty
import re
import subprocess
import sys
import time

import pytest
from hypothesis import given
from hypothesis import strategies as st
from rich.console import Console
from tokenizers import Tokenizer
from tokenizers.decoders import ByteLevel as ByteLevelDecoder
from tokenizers.models import BPE
from tokenizers.pre_tokenizers import ByteLevel

from jkv.engine import events
from jkv.load import load_tokenizer
from jkv.run.closing import summary_table, thought
from jkv.run.progress import LiveProgress
from jkv.terminal.text import visible
from tests.command.conftest import write_rows

SUMMARY = {
    "model": "demo-llama", "policy": "random", "budget": 2500, "retain": 2000, "window": 500, "sinks": 4,
    "pin_prompt": True, "granularity": "head", "batch_size": 16, "samples": 128, "pass_at_1": 0.5,
    "pass_at_1_low": 0.25, "pass_at_1_high": 0.75, "maj_at_k": 0.625,
    "truncation_rate": 0.125, "mean_tokens": 9876.5, "tokens": 1264192,
    "wall_s": 1000.0, "compile_s": 12.5, "tps": 1264.192, "tps_paper": 1500.0, "evictions": 1234, "peak_slots": 2500,
    "mean_slots": 2222.2, "kv_bytes": 3 * 2**30, "kv_bytes_full": 24 * 2**30, "recompiles": 0, "device": "cpu",
}  # fmt: skip
HOSTILE = "[bold]x[/bold] \x1b[31mred\x1b]0;title\x07 \0 \x9b31m \u202eabc [/] \\ :smile: \r\x08\x7f \ud800"


def printed(renderable, width=80, encoding="utf-8") -> str:
    file = io.TextIOWrapper(io.BytesIO(), encoding=encoding, errors="backslashreplace")
    Console(file=file, width=width).print(renderable)
    file.seek(0)
    return file.read()


def test_visible_keeps_text_and_shows_control():
    assert visible("a\nb c ü 漢字 🙂") == "a\nb c ü 漢字 🙂"
    assert visible("\x1b[1m\0\u202e\r") == r"\x1b[1m\x00\u202e\r"


@given(st.text(st.characters()))
def test_visible_text_never_steers_a_terminal(text):
    shown = visible(text)
    assert not re.search(r"[\x00-\x09\x0b-\x1f\x7f-\x9f\u202a-\u202e\u2066-\u2069\ud800-\udfff]", shown)
    assert shown.count("\n") == text.count("\n")


class Words:
    """A tokenizer whose tokens are these texts."""

    def __init__(self, words):
        self.words = words

    def decode(self, ids):
        return "".join(self.words[i] for i in ids)


def test_hostile_model_text_is_shown_not_obeyed():
    panel = thought(Words([HOSTILE]), [0], [0], [0], title=HOSTILE)
    text = printed(panel, width=200)
    assert "[bold]x[/bold]" in text
    assert r"\x1b[31mred\x1b]0;title\x07" in text
    assert not re.search(r"[\x00-\x09\x0b-\x1f\x7f-\x9f]", text)
    assert not re.search(r"[\x00-\x09\x0b-\x1f\x7f-\x9f]", printed(summary_table({**SUMMARY, "model": HOSTILE})))


def test_thought_tells_what_was_evicted_with_and_without_styles():
    words = Words(["P", "Q", " a", " b", " c", " d"])
    plain = printed(thought(words, [0, 1], [2, 3, 4, 5], [0, 4], title="t", styled=False))
    assert "P[-Q a b-] c d" in plain
    assert "3 of 6 tokens were evicted (in [- -]); the first 2 are the prompt." in plain
    styled = thought(words, [0, 1], [2, 3, 4, 5], [0, 4], title="t")
    file = io.StringIO()
    console = Console(file=file, force_terminal=True, color_system="standard", width=80)
    console.print(styled)
    text = file.getvalue()
    assert "\x1b[1;36mP" in text, "a kept token of the prompt"
    assert all(f"\x1b[2;9m{word}" in text for word in ("Q", " a", " b")), "evicted ones"
    assert "None of 6 tokens was evicted" in printed(thought(words, [0, 1], [2, 3, 4, 5], range(5), title="t"))


def test_long_thoughts_lose_their_middle():
    text = printed(thought(Words(["x"] * 5000), range(100), range(100, 5000), range(4000, 5000), title="t"))
    assert "... 4,200 tokens not shown ..." in text
    assert "4000 of 5000 tokens were evicted" in text
    assert len(text.splitlines()) < 30


@pytest.fixture(scope="module")
def byte_tokens():
    """A tokenizer of single bytes: no token but ASCII is text on its own."""
    alphabet = {char: i for i, char in enumerate(sorted(ByteLevel.alphabet()))}
    tokenizer = Tokenizer(BPE(alphabet, []))
    tokenizer.pre_tokenizer, tokenizer.decoder = ByteLevel(add_prefix_space=False), ByteLevelDecoder()
    return tokenizer


def test_characters_of_several_tokens_are_shown_whole(byte_tokens):
    text = "naïve 漢字 🙂 x"
    ids = byte_tokens.encode(text).ids
    assert len(ids) > len(text)
    shown = printed(thought(byte_tokens, ids[:2], ids[2:], range(len(ids)), title="t"))
    assert text in shown
    assert "a" in printed(thought(byte_tokens, ids[:1], ids[6:8], [0, 1], title="t")), "torn characters don't crash"


def test_ids_beyond_the_tokenizers_vocabulary(wordy):
    tokenizer = load_tokenizer(wordy, 97)
    assert " a" in printed(thought(tokenizer, [1, 16], [96, 16, 96], [0, 1, 2, 3], title="t"))


@pytest.mark.parametrize("width", [80, 120])
def test_closing_table(width):
    lines = printed(summary_table(SUMMARY), width).splitlines()
    assert [line.split()[0] for line in lines if not line.startswith(" ")] == [
        "model", "policy", "Pass@1", "majority", "samples", "evictions", "KV", "throughput", "tps_paper",
    ]  # fmt: skip
    assert all(len(line) <= width for line in lines)
    text = " ".join(" ".join(lines).split())
    for part in (
        "budget 2,500, retain 2,000, window 500, sinks 4, prompt pinned, per head",
        "50.0 % (95 %: 25.0 % to 75.0 %)", "128, 9,876 tokens each on average, 12.5 % cut off", "2,500 at most",
        "3.0 GiB for 16 rows; the full cache would take 24.0 GiB", "1,264 tokens/s (1,264,192 in 1,000.0 s",
    ):  # fmt: skip
        assert part in text
    ungraded = {**SUMMARY, **dict.fromkeys(("pass_at_1", "pass_at_1_low", "pass_at_1_high", "maj_at_k", "tps_paper"))}
    assert "not graded" in printed(summary_table({**ungraded, "recompiles": 2}), width)
    assert "3 samples, not counted" in " ".join(printed(summary_table({**SUMMARY, "ungraded": 3}), width).split())
    full = {**SUMMARY, "policy": "full", "retain": SUMMARY["budget"]}
    assert "full: 2,500 slots a row, nothing is evicted" in printed(summary_table(full), width)


def live(console_width, monkeypatch, ticks):
    monkeypatch.setenv("COLUMNS", str(console_width))
    progress = LiveProgress(total=40, slots=2048, kv_bytes=2**20, kv_bytes_full=2**23, quiet=False)
    with progress:
        progress.compiling()
        progress.start_clock()
        for n in range(ticks):
            progress.tick(events.Progress(1000 * n, 16, 1500))
        progress.sample_done(3)
        progress.bar.refresh()


def test_without_a_terminal_progress_is_few_plain_lines(monkeypatch, capsys):
    live(80, monkeypatch, ticks=200)
    err = capsys.readouterr().err
    assert err == "0 of 40 samples, compiling, KV 1.0 MiB (full cache 8.0 MiB)\n"
    clock = iter(range(0, 100_000, 3))
    monkeypatch.setattr(time, "perf_counter", lambda: float(next(clock)))
    live(80, monkeypatch, ticks=20)
    lines = capsys.readouterr().err.splitlines()
    assert 3 <= len(lines) <= 20
    form = r"0 of 40 samples, 16 rows, [\d,]+ tokens/s, 1,500 of 2,048 slots, KV 1\.0 MiB \(full cache 8\.0 MiB\)"
    assert all(re.fullmatch(form, line) for line in lines[1:])


@pytest.mark.parametrize("width", [80, 120])
def test_on_a_terminal_progress_fits(monkeypatch, capsys, width):
    monkeypatch.setenv("FORCE_COLOR", "1")
    monkeypatch.setenv("TERM", "xterm-256color")
    live(width, monkeypatch, ticks=3)
    text = re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", capsys.readouterr().err)
    bar = next(line for line in re.split(r"[\r\n]+", text) if "3/40 samples" in line)
    assert bar.startswith("decoding")
    whole = " ".join(text.split())
    assert re.search(r" 16 rows, [\d,]+ tokens/s, 1,500 of 2,048 slots, KV 1\.0 MiB \(full cache 8\.0 MiB\)", whole)
    assert all(len(line.rstrip()) <= width for line in re.split(r"[\r\n]+", text))


@pytest.mark.slow
@pytest.mark.parametrize("encoding", ["utf-8", "ascii"])
def test_the_whole_command_in_a_pseudo_terminal(wordy, tmp_path, encoding):
    task = write_rows(tmp_path / "task.jsonl", [{"id": f"{i}\x1b[31mü", "prompt_ids": [5, 6]} for i in range(4)])
    command = [
        sys.executable, "-m", "jkv.decode", "--model", str(wordy), "--task", str(task), "--policy", "window",
        "--budget", "16", "--max-new-tokens", "200", "--ignore-eos",
    ]  # fmt: skip
    ours, theirs = pty.openpty()
    environment = {**os.environ, "TERM": "xterm-256color", "COLUMNS": "80", "PYTHONIOENCODING": encoding}
    process = subprocess.Popen(command, env=environment, stdin=theirs, stdout=theirs, stderr=theirs)
    os.close(theirs)
    seen = b""
    try:
        while data := os.read(ours, 65536):
            seen += data
    except OSError:  # how Linux says that the other end is closed
        pass
    os.close(ours)
    assert process.wait(60) == 0
    text = seen.decode(encoding)
    for part in ("decoding", "rows", "tokens/s", "slots", "full cache", "throughput", "were evicted", r"\x1b[31m"):
        assert part in text
    assert "\x1b[31m" not in text
