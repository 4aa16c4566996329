"""DynTS's published checkpoints: an importance predictor among the model's tensors, or alone."""

import jax.numpy as jnp
import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from converters.__main__ import main
from converters.hf import read_hf
from jkv.errors import UserError
from jkv.load import load
from jkv.models.predictor import NAMES, importance, load_predictor
from tests.converters.conftest import TINY


def heads(wide: int, narrow: int) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(0)
    shapes = ((wide, TINY.d_model), (narrow, wide), (1, narrow))
    return {name: rng.normal(size=shape).astype(np.float32) for name, shape in zip(NAMES, shapes, strict=True)}


@pytest.mark.parametrize("widths", [(32, 8), (96, 24)], ids=["2D, D/2", "fixed"])
@pytest.mark.parametrize("alone", [False, True])
def test_a_predictor_among_the_models_tensors_is_set_apart(checkpoint, tmp_path, widths, alone):
    tensors = heads(*widths)
    if alone:
        checkpoint.save(tensors)
        (checkpoint.directory / "config.json").unlink()
    else:
        checkpoint.save(checkpoint.tensors() | tensors)
        assert read_hf(checkpoint.directory).config.d_model == TINY.d_model  # also loads as it is
    main([str(checkpoint.directory), str(tmp_path / "out")])
    written = load_file(tmp_path / "out" / "predictor.safetensors")
    assert written.keys() == tensors.keys()
    for name, tensor in tensors.items():
        np.testing.assert_array_equal(written[name], tensor)
    if not alone:
        assert load(tmp_path / "out").config == read_hf(checkpoint.directory).config

    x = np.random.default_rng(1).normal(size=TINY.d_model)
    expected = x
    for name in NAMES:
        expected = np.logaddexp(0, tensors[name] @ expected)
    predictor = load_predictor(tmp_path / "out", TINY.d_model)
    np.testing.assert_allclose(
        importance(predictor, jnp.asarray(x, jnp.float32)[None, None])[0, 0], expected, rtol=1e-5
    )


def test_half_a_predictor_is_refused(checkpoint, tmp_path):
    tensors = heads(32, 8)
    del tensors[NAMES[1]]
    checkpoint.save(checkpoint.tensors() | tensors)
    with pytest.raises(UserError, match=r"the predictor is incomplete: is_head.2.weight missing"):
        main([str(checkpoint.directory), str(tmp_path / "out")])
    assert not (tmp_path / "out").exists()


def test_what_policies_read_goes_with_the_model_both_ways(checkpoint, tmp_path):
    save_file(heads(32, 8), checkpoint.directory / "predictor.safetensors")
    (checkpoint.directory / "predictor.json").write_text('{"layer": 1}')
    save_file({"mean": np.zeros(3, np.float32)}, checkpoint.directory / "query_statistics.safetensors")
    main([str(checkpoint.directory), str(tmp_path / "there")])
    main([str(tmp_path / "there"), str(tmp_path / "back"), "--to-hf"])
    for name in ("predictor.safetensors", "predictor.json", "query_statistics.safetensors"):
        assert (tmp_path / "back" / name).read_bytes() == (checkpoint.directory / name).read_bytes()
