"""``--mesh`` in decode, sweep and train_predictor, on eight simulated devices."""

import subprocess
import sys

import pytest

from tests.support.compilation import quick_environment


@pytest.mark.slow
@pytest.mark.parametrize("what", ["labels", "decode", "train"])
def test_a_command_gives_the_same_on_a_mesh(what, tmp_path):
    command = [sys.executable, "-m", "tests.mesh.commands", what, str(tmp_path)]
    done = subprocess.run(command, env=quick_environment(8), capture_output=True, text=True, timeout=1800)
    assert done.returncode == 0, done.stderr[-3000:]
