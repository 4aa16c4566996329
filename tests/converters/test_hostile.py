"""Safetensors files that are torn or made to harm: one line, no crash, no memory to speak of."""

import json
import struct
import tracemalloc

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from converters.hf import read_hf
from jkv.errors import UserError
from tests.converters.conftest import attempt


def refusal(checkpoint) -> str:
    with pytest.raises(UserError) as error:
        read_hf(checkpoint.directory)
    assert "\n" not in str(error.value)
    return str(error.value)


def rewrite(checkpoint, change) -> None:
    """Replace the header by ``change(header)``, keeping the data."""
    raw = checkpoint.weights.read_bytes()
    (length,) = struct.unpack("<Q", raw[:8])
    header = json.dumps(change(json.loads(raw[8 : 8 + length]))).encode()
    checkpoint.weights.write_bytes(struct.pack("<Q", len(header)) + header + raw[8 + length :])


@pytest.mark.parametrize("keep", [0, 4, 8, 100, -1, -1000])
def test_torn(checkpoint, keep):
    raw = checkpoint.weights.read_bytes()
    checkpoint.weights.write_bytes(raw[:keep])
    message = refusal(checkpoint)
    assert message.startswith(f"{checkpoint.weights}: can't be read as safetensors (")
    assert message.endswith("; the file is incomplete or not safetensors: download it again")


@pytest.mark.parametrize("length", [2**64 - 1, 2**63, 2**40, 100_000_001])
def test_huge_header_length(checkpoint, length):
    raw = checkpoint.weights.read_bytes()
    checkpoint.weights.write_bytes(struct.pack("<Q", length) + raw[8:])
    tracemalloc.start()
    message = refusal(checkpoint)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert message.startswith(f"{checkpoint.weights}: can't be read as safetensors (")
    assert peak < 10**7


def moved(offsets):
    def change(header):
        header["lm_head.weight"]["data_offsets"] = offsets
        return header

    return change


def declared(**fields):
    def change(header):
        header["lm_head.weight"].update(fields)
        return header

    return change


@pytest.mark.parametrize(
    "change",
    [
        moved([0, 3200]),  # overlaps the first tensor
        moved([10**12, 10**12 + 3200]),
        moved([3200, 0]),
        moved([-1, 3199]),
        declared(shape=[50, 17]),
        declared(shape=[2**62, 2**62]),
        declared(shape=[-50, -16]),
        declared(dtype="F33"),
        declared(dtype="BF16"),  # half as long as its data
        lambda header: {},
        lambda header: [],
        lambda header: {**header, "lm_head.weight": None},
        lambda header: {**header, "extra": header["lm_head.weight"]},
        lambda header: {**header, "__metadata__": {"format": 7}},
    ],
)
def test_lying_header(checkpoint, change):
    rewrite(checkpoint, change)
    assert refusal(checkpoint).startswith(f"{checkpoint.weights}: can't be read as safetensors (")


def test_integers_are_no_weights(checkpoint):
    tensors = checkpoint.tensors()
    tensors["lm_head.weight"] = tensors["lm_head.weight"].astype("int32")
    checkpoint.save(tensors)
    assert refusal(checkpoint).endswith("1 misshapen: lm_head.weight is I32, expected F32, F16, BF16")


def test_a_directory_in_the_place_of_a_file(checkpoint):
    checkpoint.weights.unlink()
    checkpoint.weights.mkdir()
    assert refusal(checkpoint).startswith(f"{checkpoint.weights}: can't be read")


ORIGINAL = {}  # the fixture is shared by all examples of a test, a failed one leaves its damage


@settings(deadline=None, max_examples=150, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_any_damage_is_read_or_refused_in_one_line(checkpoint, data):
    original = ORIGINAL.setdefault(checkpoint.weights, checkpoint.weights.read_bytes())
    raw = bytearray(original)
    for _ in range(data.draw(st.integers(1, 4))):
        # Mostly in the header, where damage has the most ways to be misread.
        place = data.draw(st.integers(0, len(raw) - 1) | st.integers(0, 2200))
        raw[place] = data.draw(st.integers(0, 255))
    checkpoint.weights.write_bytes(raw[: data.draw(st.just(len(raw)) | st.integers(0, len(raw)))])
    assert "\n" not in attempt(read_hf, checkpoint.directory)
    checkpoint.weights.write_bytes(original)
