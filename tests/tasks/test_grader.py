"""The grader's worker: it keeps its limits, is replaced when it dies, leaves no orphan, and runs nothing."""

import os
import signal
import subprocess
import sys
import textwrap
import threading
import time

import psutil
import pytest

from jkv.grading import Grader, Verdict
from tests.tasks.hostile import hostile_answers

TOWER = "10^{10^{10}}"


def gone(pid: int, within: float = 10) -> bool:
    deadline = time.monotonic() + within
    while time.monotonic() < deadline:
        try:
            if psutil.Process(pid).status() == psutil.STATUS_ZOMBIE:
                return True
        except psutil.NoSuchProcess:
            return True
        time.sleep(0.05)
    return False


@pytest.fixture(scope="module")
def quick():
    """A grader that gives up after a second."""
    with Grader(limit=1.0) as grader:
        yield grader


def ready(grader: Grader) -> None:
    assert grader.grade("1", "2") == Verdict(False)


def test_a_stalled_worker_is_replaced(quick):
    ready(quick)
    before = quick.pid
    started = time.monotonic()
    assert quick.grade(TOWER, "42") == Verdict(None, "timeout")
    assert time.monotonic() - started < 1.5
    assert gone(before)
    assert quick.grade(r"\frac{2}{4}", "0.5") == Verdict(True)
    assert quick.pid != before


def test_a_dead_worker_is_replaced(quick):
    ready(quick)
    before = quick.pid
    os.kill(before, signal.SIGKILL)
    assert quick.grade("1", "2") == Verdict(None, "died")
    ready(quick)
    assert quick.pid != before


def test_a_stopped_worker_is_replaced_though_it_reads_nothing(quick):
    ready(quick)
    os.kill(quick.pid, signal.SIGSTOP)
    started = time.monotonic()
    assert quick.grade("1" * 1_000_000, "2") == Verdict(None, "timeout")
    assert time.monotonic() - started < 1.5


def test_memory_is_limited():
    with Grader(limit=20.0, memory=600 << 20) as grader:
        ready(grader)
        verdict = grader.grade(r"\begin{pmatrix} 1 & 2 \\ 3 & x \end{pmatrix}^{10^{6}}", "42")
        assert verdict.reason in ("memory", "timeout", "died") or verdict.correct is False
        limit = psutil.Process(grader.pid).rlimit(psutil.RLIMIT_AS) if grader.pid else (600 << 20,) * 2
        assert limit == (600 << 20, 600 << 20)
        # Whatever became of it, the next answer is graded.
        assert grader.grade("2^{2}", "4").correct is True


def test_a_worker_that_needs_more_than_its_memory_dies_and_says_so():
    with Grader(memory=40 << 20) as grader:
        assert grader.grade("1", "2") == Verdict(None, "died")


def test_close_ends_a_busy_worker_at_once():
    with Grader(limit=60.0) as grader:
        ready(grader)
        verdicts: list[Verdict] = []
        waiting = threading.Thread(target=lambda: verdicts.append(grader.grade(TOWER, "42")))
        waiting.start()
        time.sleep(0.3)
        worker, started = grader.pid, time.monotonic()
        grader.close()
        waiting.join(5)
        assert time.monotonic() - started < 2
        assert verdicts == [Verdict(None, "died")]
        assert gone(worker)
        assert grader.grade("1", "2") == Verdict(None, "died")


_IGNORED = pytest.mark.skipif(
    signal.getsignal(signal.SIGINT) == signal.SIG_IGN,
    reason="a shell that starts this in the background ignores SIGINT",
)


@pytest.mark.parametrize("stop", [signal.SIGKILL, pytest.param(signal.SIGINT, marks=_IGNORED)])
def test_no_orphan_outlives_its_limit(stop):
    """The worker computes, in C code that hears no signal handler, when its parent is killed or hears Ctrl-C."""
    script = textwrap.dedent(f"""
        import sys
        from jkv.grading import Grader
        with Grader(limit=2) as grader:
            grader.grade("1", "2")
            print(grader.pid, flush=True)
            grader.grade({TOWER!r}, "42")
            print("done", flush=True)
            grader.grade("1", "2")
            sys.stdin.read()
    """)
    parent = subprocess.Popen(
        [sys.executable, "-c", script], stdout=subprocess.PIPE, stdin=subprocess.PIPE, text=True,
        stderr=subprocess.DEVNULL,
    )  # fmt: skip
    with parent:
        assert parent.stdout is not None
        worker = int(parent.stdout.readline())
        time.sleep(0.5)
        assert not gone(worker, within=0.1)
        parent.send_signal(stop)
        assert gone(worker, within=6)
        parent.wait(10)


def test_what_the_caller_says_can_be_any_string(grader):
    for text in ("4\ud800", "\x00", "4\n2", '"]\n["1", "1"]\n', "\u2028", "\x1b[31m", "é" * 1000):
        assert grader.grade(text, "42") == Verdict(False)
        assert grader.grade("42", text) == Verdict(False)
    assert grader.grade("\ud800", "\ud800") == Verdict(True)
    assert grader.grade("", "") == Verdict(False)


def test_the_worker_gives_up_compiling_writing_and_starting_processes(tmp_path):
    script = textwrap.dedent(f"""
        import os, socket, subprocess
        from jkv.grading.worker import forbid_execution
        forbid_execution()
        attempts = [
            lambda: eval("1"), lambda: exec("1"), lambda: compile("1", "<string>", "eval"),
            lambda: eval("1", {{"__builtins__": {{}}}}), lambda: open({str(tmp_path / "a")!r}, "w"),
            lambda: open({str(tmp_path / "a")!r}, "ab"),
            lambda: os.open({str(tmp_path / "a")!r}, os.O_CREAT | os.O_RDWR),
            lambda: os.system("true"), lambda: subprocess.run(["true"]), lambda: os.fork(),
            lambda: os.execv("/bin/true", ["true"]), lambda: os.remove(__file__), lambda: os.kill(os.getppid(), 0),
            lambda: socket.create_connection(("127.0.0.1", 9)), lambda: os.mkdir({str(tmp_path / "b")!r}),
        ]
        for i, attempt in enumerate(attempts):
            try:
                attempt()
            except PermissionError as error:
                if "the grader" in str(error):
                    continue
            print("allowed:", i)
        import wave  # a module that wasn't there yet may still be imported
        print("end")
    """)
    (tmp_path / "script.py").write_text(script)
    done = subprocess.run(
        [sys.executable, str(tmp_path / "script.py")], capture_output=True, text=True,
        env={**os.environ, "PYTHONPATH": os.getcwd()},
    )  # fmt: skip
    assert (done.stdout, done.stderr) == ("end\n", "")


QUICK = ("python tower", "many digits", "more digits than Python reads", "parentheses", "many parentheses", "braces",
         "open braces", "a megabyte of digits", "a megabyte of backslashes", "import", "eval", "exec", "open", "lambda",
         "text", "operator name", "variable", "write18", "input", "openout", "def", "format", "percent format",
         "template", "NUL", "end of the protocol", "half a surrogate pair", "other digits", "nothing")  # fmt: skip


def test_hostile_answers_that_are_refused_quickly(grader, tmp_path):
    hostile = hostile_answers(tmp_path / "canary")
    ready(grader)
    worker = grader.pid
    for name in QUICK:
        assert grader.grade(hostile[name], "42") == Verdict(False), name
    assert grader.pid == worker
    assert not (tmp_path / "canary").exists()


@pytest.mark.slow
def test_all_hostile_answers(tmp_path):
    """None is right, none runs, none takes longer than its limit, and the answer after each is graded."""
    limit = 1.0
    hostile = hostile_answers(tmp_path / "canary")
    assert len(hostile) >= 50
    with Grader(limit=limit) as grader:
        for name, answer in hostile.items():
            assert grader.grade("2^{2}", "4") == Verdict(True)
            started = time.monotonic()
            verdict = grader.grade(answer, "42")
            assert time.monotonic() - started < limit + 1, name
            assert verdict.correct is False or verdict.reason in ("timeout", "memory", "died"), name
            assert not (tmp_path / "canary").exists(), name
        assert grader.grade("2^{2}", "4") == Verdict(True)
