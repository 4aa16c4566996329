"""Weights go from files to the devices of a mesh: only what a process holds is read, and little more is in memory."""

import json
import os
import socket
import subprocess
import sys

import jax
import numpy as np
import pytest
from jax.sharding import NamedSharding, PartitionSpec
from safetensors.numpy import load_file

from converters import ranges
from converters.__main__ import convert
from converters.ranges import read_box
from converters.tables import rows
from jkv.models.config import ModelConfig
from tests.mesh.loading import write_synthetic

# 126 MB, the head being the largest tensor; K = 8 for eight devices.
SMALL = ModelConfig("llama", 8000, 1024, 3072, 4, 16, 8, 64, 1e4)
LARGE = ModelConfig("llama", 32000, 2048, 8192, 30, 16, 8, 128, 1e4)  # 4.0 GB


def load_on(directory, processes: int) -> list[dict]:
    """What `tests.mesh.loading` says in each of so many processes that share eight devices."""
    with socket.socket() as free:
        free.bind(("localhost", 0))
        port = str(free.getsockname()[1])
    flags = f"--xla_force_host_platform_device_count={8 // processes}"
    environment = {**os.environ, "JAX_PLATFORMS": "cpu", "XLA_FLAGS": flags}
    command = [sys.executable, "-m", "tests.mesh.loading", str(directory), str(processes)]
    started = [
        subprocess.Popen([*command, str(i), port], env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
        for i in range(processes)
    ]
    outcomes = [process.communicate(timeout=600) for process in started]
    for process, (_, errors) in zip(started, outcomes, strict=True):
        assert process.returncode == 0, errors.decode()[-3000:]
    return [json.loads(out.splitlines()[-1]) for out, _ in outcomes]


def test_peak_memory_of_one_process(tmp_path):
    size = write_synthetic(tmp_path, SMALL)
    (found,) = load_on(tmp_path, 1)
    print(size, found)
    assert size <= found["shards"] < 1.01 * size  # the norms are on every device
    assert found["peak"] - found["before"] < 1.3 * size


@pytest.mark.slow
def test_a_converted_checkpoint(tmp_path):
    """Orbax reads several tensors at a time: its memory is bounded for checkpoints much larger than that."""
    size = write_synthetic(tmp_path / "hf", SMALL)
    convert(str(tmp_path / "hf"), tmp_path / "converted")
    (plain,), (alone,) = load_on(tmp_path / "hf", 1), load_on(tmp_path / "converted", 1)
    four = load_on(tmp_path / "converted", 4)
    print(size, alone, four)
    assert alone["sum"] == plain["sum"] == sum(found["sum"] for found in four)
    for found in four:
        assert found["shards"] < 0.26 * size


@pytest.mark.slow
def test_peak_memory_of_4_gb(tmp_path):
    size = write_synthetic(tmp_path, LARGE)
    assert size > 4e9
    (alone,) = load_on(tmp_path, 1)
    print(size, alone)
    assert alone["peak"] < 1.3 * size
    four = load_on(tmp_path, 4)
    print(four)
    for found in four:
        assert found["peak"] < 0.4 * size
    assert sum(found["sum"] for found in four) == alone["sum"]


@pytest.mark.parametrize("count", [2, 4, 8])
def test_every_part_is_the_tensors(tmp_path, count):
    """Of every kind of tensor, what each place on an axis of ``count`` devices would read."""
    config = ModelConfig("qwen2", 48, 10, 24, 1, 16, 8, 4, 1e4, qkv_bias=True)
    write_synthetic(tmp_path, config)
    tensors = load_file(tmp_path / "model.safetensors")
    cut = {"N": count, "K": count, "F": count, "V": count}
    for row in rows(config):
        whole = row.to_leaf(tensors[row.name], config)
        assert whole.shape == row.leaf_shape(config)
        for place in range(count):
            index = tuple(
                slice(place * n // count, (place + 1) * n // count) if letter in cut else slice(None)
                for letter, n in zip(row.leaf_axes.split(), whole.shape, strict=True)
            )
            part = row.part(index, config)
            box = row.file_box(part, config)
            piece = row.to_leaf(tensors[row.name][box], config, part)
            np.testing.assert_array_equal(piece.view(np.uint16), whole[index].view(np.uint16))


def test_heads_are_not_cut(tmp_path):
    config = ModelConfig("llama", 48, 16, 24, 1, 16, 8, 4, 1e4)
    query = next(row for row in rows(config) if row.path.endswith("q.kernel"))
    part = query.part((slice(None), slice(None), slice(0, 2)), config)
    with pytest.raises(ValueError, match="is not a box"):
        query.file_box(part, config)


@pytest.mark.parametrize("shape", [(7, 3000), (5, 12), (11,)])
def test_boxes_of_a_file(tmp_path, monkeypatch, shape):
    """Runs, rows apart, and rows in blocks, at an odd place of the file."""
    monkeypatch.setattr(ranges, "BLOCK", 30_000)
    array = np.arange(np.prod(shape), dtype=np.int32).reshape(shape)
    path = tmp_path / "array"
    path.write_bytes(b"odd" + array.tobytes())
    last = shape[-1]
    with path.open("rb") as file:
        for start, stop in ((0, last), (0, 1), (last // 3, last // 2), (1, last)):
            for rows_of in (slice(0, 2), slice(1, shape[0]), slice(0, shape[0])):
                box = (rows_of, slice(start, stop))[-len(shape) :]
                found = read_box(file.fileno(), 3, shape, array.dtype, box)
                np.testing.assert_array_equal(found, array[box])
        np.testing.assert_array_equal(read_box(file.fileno(), 3, shape, array.dtype), array)
        with pytest.raises(OSError, match="ends too early"):
            read_box(file.fileno(), 3, (shape[0] + 1, *shape[1:]), array.dtype)


def test_only_what_is_wanted_is_read(tmp_path, monkeypatch):
    read = []
    monkeypatch.setattr(ranges, "_fill", lambda file, offset, into: read.append((offset, len(into))))
    wide = np.dtype("int32")
    read_box(0, 100, (64, 8192), wide, (slice(8, 16), slice(0, 8192)))
    assert read == [(100 + 8 * 32768, 8 * 32768)]
    read.clear()
    read_box(0, 0, (4, 8192), wide, (slice(0, 4), slice(2048, 4096)))
    assert read == [(row * 32768 + 8192, 8192) for row in range(4)]


def test_a_sharding_without_a_mesh_of_many(tmp_path):
    """One device: the whole leaf, as ``place_weights`` of a 1 x 1 mesh has it."""
    from converters.fill import leaves
    from jkv.distributed.mesh import make_mesh
    from jkv.distributed.weights import place_weights
    from jkv.load import load

    write_synthetic(tmp_path, ModelConfig("llama", 48, 16, 24, 1, 16, 8, 4, 1e4))
    mesh = make_mesh(jax.devices()[:1], {"data": 1, "model": 1})
    plain, placed = leaves(load(tmp_path).model), leaves(load(tmp_path, None, place_weights(mesh)).model)
    for path, leaf in plain.items():
        assert placed[path].dtype == leaf.dtype
        assert isinstance(placed[path].sharding, NamedSharding)
        np.testing.assert_array_equal(np.asarray(placed[path]), np.asarray(leaf))
    assert placed["final_norm.scale"].sharding.spec == PartitionSpec(None)
