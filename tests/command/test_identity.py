"""What makes a run another run."""

import jax.numpy as jnp

from jkv.config.decode import DecodeConfig
from jkv.policies import Window
from jkv.run.identity import run_identity
from jkv.tasks import Problem


def test_other_weights_are_another_run():
    config, problems = DecodeConfig(policy="window"), [Problem("a", (1, 2), "3")]
    identity = lambda arrays: run_identity(config, Window(), "float32", arrays, problems)
    arrays = {"kernel": jnp.ones((3, 4)), "scale": jnp.ones(4)}
    assert identity(arrays) == identity(dict(arrays))
    for other in ({**arrays, "kernel": 2 * arrays["kernel"]}, {**arrays, "scale": 2 * arrays["scale"]}):
        changed = {name for name, value in identity(other).items() if value != identity(arrays)[name]}
        assert changed == {"weights"}
