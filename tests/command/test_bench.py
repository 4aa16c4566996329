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
