"""``--mesh`` in decode, sweep and train_predictor, on eight simulated devices."""

import os
import subprocess
import sys

import pytest


@pytest.mark.parametrize(
    "what", ["labels", pytest.param("decode", marks=pytest.mark.slow), pytest.param("train", marks=pytest.mark.slow)]
)
def test_a_command_gives_the_same_on_a_mesh(what, tmp_path):
    environment = {
        **os.environ, "JAX_PLATFORMS": "cpu", "XLA_FLAGS": "--xla_force_host_platform_device_count=8",
    }  # fmt: skip
    command = [sys.executable, "-m", "tests.mesh.commands", what, str(tmp_path)]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=1800)
    assert done.returncode == 0, done.stderr[-3000:]
