"""Which implementation runs, and what is said when none can."""

import jax.numpy as jnp
import pytest

from jkv.ops import dispatch
from jkv.ops.insert import insert
from jkv.ops.prefill_attention import prefill_attention


def refuse(reason: str):
    def implementation():
        raise NotImplementedError(reason)

    return implementation


def run(implementation: str, target: dispatch.Platform, **table):
    with dispatch.target(target):
        return dispatch.run("op", table, implementation)


def test_auto_takes_the_first_that_can_and_a_name_takes_its_own():
    table = {"pallas": lambda: "kernel", "xla": lambda: "xla", "reference": lambda: "reference"}
    for name, platform, taken in (
        ("auto", "tpu", "kernel"),
        ("auto", "gpu", "kernel"),
        ("auto", "cpu", "xla"),
        ("xla", "tpu", "xla"),
        ("reference", "tpu", "reference"),
    ):
        assert run(name, platform, **table) == taken
    assert run("auto", "tpu", **table | {"pallas": refuse("too large")}) == "xla"


def test_every_reason_is_given_at_once():
    table = {"pallas": refuse("too large"), "xla": refuse("too odd")}
    with pytest.raises(NotImplementedError, match=r"^op can't run here \(pallas: too large; xla: too odd\)$"):
        run("auto", "tpu", **table)
    with pytest.raises(NotImplementedError, match=r"^op can't run here \(pallas: too large\)$") as error:
        run("pallas", "tpu", **table)
    assert str(error.value.__cause__) == "too large"


def test_other_errors_are_not_taken_for_a_refusal():
    def broken():
        raise ValueError("a bug")

    with pytest.raises(ValueError, match="a bug"):
        run("auto", "tpu", pallas=broken, xla=lambda: "xla")


def test_a_missing_kernel_names_the_op_and_the_platforms_that_have_one():
    k = jnp.zeros((1, 1, 8, 64))
    with pytest.raises(NotImplementedError, match=r"^insert can't run here \(pallas: there is no pallas kernel\)$"):
        insert(k, k, k[:, :, 0], k[:, :, 0], jnp.zeros(1, jnp.int32), implementation="pallas")
    reason = r"^prefill_attention can't run here \(pallas: there is a pallas kernel for TPU, not for GPU\)$"
    with dispatch.target("gpu"), pytest.raises(NotImplementedError, match=reason):
        prefill_attention(k, k, k, implementation="pallas")
