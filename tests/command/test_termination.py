"""SIGTERM: exit code 143 within five seconds, whatever the main thread is doing, with a line that says how to go on."""

import signal
import subprocess
import sys
import time

import pytest

LONG = "hashlib.pbkdf2_hmac('sha256', b'', b'', 10**9)"  # one call of C that lets no handler run, as a device's call
MAIN = """
import hashlib, sys, time
from jkv.terminal import command as cli
from jkv.terminal import termination

def main(argv):
    with termination.last_line(lambda: "3 of 9 samples: run the same command to continue"):
        {body}

cli.run(main)
"""


def terminated(body: str, *, tries: int = 1) -> tuple[float, str, str]:
    """Seconds from SIGTERM to the end of a command that does ``body``, and what it printed."""
    command = [sys.executable, "-c", MAIN.format(body=body)]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    assert process.stdout is not None
    assert process.stdout.readline() == "begun\n"
    since = time.monotonic()
    for _ in range(tries):
        process.send_signal(signal.SIGTERM)
    out, err = process.communicate(timeout=60)
    assert process.returncode == 143, err
    return time.monotonic() - since, out, err


def test_between_two_steps():
    took, out, err = terminated("print('begun', flush=True)\n        while True: time.sleep(0.01)")
    assert (out, err) == ("", "terminated: 3 of 9 samples: run the same command to continue\n")
    assert took < 3


@pytest.mark.parametrize("tries", [1, 3])
def test_within_a_call_that_does_not_return(tries):
    took, out, err = terminated(f"print('begun', flush=True)\n        {LONG}", tries=tries)
    assert (out, err) == ("", "terminated: 3 of 9 samples: run the same command to continue\n")
    assert took < 5


def test_the_write_in_hand_is_finished():
    body = """
        with termination.whole_write():
            print("begun", flush=True)
            time.sleep(1)
            print("written", flush=True)
        print("more", flush=True)
    """
    took, out, err = terminated(body.strip())
    assert out == "written\n"
    assert err == "terminated: 3 of 9 samples: run the same command to continue\n"
    assert 0.9 < took < 4


def test_a_write_that_hangs_does_not_hold_the_process():
    body = f"""
        with termination.whole_write():
            print("begun", flush=True)
            {LONG}
    """
    took, _, err = terminated(body.strip())
    assert "run the same command to continue" in err
    assert took < 5


def test_a_command_that_is_done_leaves_signals_as_they_were():
    before = signal.getsignal(signal.SIGTERM)
    from jkv.terminal import command as cli

    with pytest.raises(SystemExit) as leaving:
        cli.run(lambda argv: None)
    assert leaving.value.code == 0
    assert signal.getsignal(signal.SIGTERM) == before
    assert signal.set_wakeup_fd(-1) == -1
