"""``python -m jkv.bench`` runs, counts right, and writes what it prints. Times are measured, never asserted."""

import json

import pytest

from jkv import bench
from jkv.errors import UserError

TINY = [
    "--layers=1", "--d-model=32", "--heads=4", "--kv-heads=2", "--d-ff=48", "--vocab=64", "--batch-size=2",
    "--prompt-tokens=6", "--new-tokens=20", "--budget=16", "--turns=2",
]  # fmt: skip


def test_contestants_and_figures(tmp_path, capsys):
    file = tmp_path / "bench.json"
    bench.main([*TINY, "--json", str(file)])
    figures = json.loads(file.read_text())
    names = list(figures["contestants"])
    assert names == ["transformers, full cache", "jkv, full cache", "jkv, window, budget 16"]
    for row in figures["contestants"].values():
        assert len(row["seconds"]) == 2
        assert row["ratio"] > 0
    assert figures["contestants"][names[0]]["ratio"] == 1
    # 4 projections of 32x32 (k and v half as wide), 3 of 32x48, 3 norms, and the head.
    assert figures["weight_bytes"] == 4 * (32 * 32 * 3 + 3 * 32 * 48 + 3 * 32 + 32 * 64)
    shown = capsys.readouterr().out
    assert "x transformers" in shown
    assert "window, budget 16" in shown


def test_bad_sizes_are_refused():
    with pytest.raises(UserError, match="--turns: 0 is below 1"):
        bench.main(["--turns", "0"])


@pytest.mark.slow
def test_policies_and_their_cost(tmp_path, capsys):
    file = tmp_path / "policies.json"
    bench.main([*TINY, "--policies", "--only", "knorm", "dynts", "h2o", "--json", str(file)])
    figures = json.loads(file.read_text())
    assert list(figures["policies"]) == ["window", "knorm", "dynts", "h2o"]
    assert figures["retain"] == 14
    for row in figures["policies"].values():
        assert len(row["ratios"]) == 2
        assert row["share_of_time"] == pytest.approx(row["over_full"] / (1 + row["over_full"]))
    assert figures["policies"]["window"]["tps_over_window"] == 1
    assert "more than full" in capsys.readouterr().out


def test_a_load_without_an_eviction_is_refused():
    with pytest.raises(UserError, match="hold no eviction"):
        bench.main([*TINY, "--policies", "--new-tokens", "3"])


def test_an_unknown_policy_is_refused():
    with pytest.raises(UserError, match="no policy 'nope'"):
        bench.main([*TINY, "--policies", "--only", "nope"])
