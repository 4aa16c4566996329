"""``python -m jkv.probe``: what it asks, how it counts evictions, and what it writes."""

import csv
import io

import pytest

from jkv import probe
from jkv.demo.probe import FACT, probes
from jkv.errors import UserError
from jkv.run.probe import evictions_between


def test_a_probe_states_its_fact_once_and_asks_for_it():
    asked = probes(5, seed=3)
    assert len({p.id for p in asked}) == len({p.text for p in asked}) == 25
    for p in asked:
        words = p.text.split()
        assert words[p.fact - 2 : p.fact + 2] == ["so", FACT, p.value, "keep"]
        assert words[-2:] == ["</think>", FACT]
        # After its own block nothing speaks of it.
        block_end = words.index("now", p.fact)
        assert FACT not in words[block_end:-1]
        assert p.length == len(words)
    assert asked[:5] == probes(5, seed=3, variables=(2,))


@pytest.mark.parametrize(("budget", "retain"), [(64, 60), (64, 63), (50, 31)])
def test_evictions_in_between_are_those_of_a_row_that_fills_up(budget, retain):
    for length in range(40, 220, 7):
        for fact in range(-1, length, 5):
            occupied = events = 0
            for position in range(length):
                if occupied == budget:
                    occupied = retain
                    events += position > fact
                occupied += 1
            assert evictions_between(fact, length, budget, retain) == events


@pytest.mark.slow
def test_table_and_picture(tmp_path):
    own = tmp_path / "own.py"
    own.write_text(
        "from jkv.policies import Policy, register\n"
        "class Oldest(Policy):\n"
        "    name = 'oldest'\n"
        "    def score(self, state, slots):\n"
        "        return -slots.positions.astype('float32')\n"
        "register(Oldest)\n",
        encoding="utf-8",
    )
    out = tmp_path / "out"
    probe.main(["--policies", "window", "oldest", "--register", str(own), "--probes", "2", "--out", str(out)])
    rows = list(csv.DictReader(io.StringIO((out / "probe.csv").read_text("utf-8"))))
    share = {(row["policy"], row["evictions_from"]): row for row in rows}
    assert sum(int(row["probes"]) for row in rows if row["policy"] == "full") == 10
    assert all(float(row["recalled"]) == 1 for row in rows if row["policy"] == "full" and row["probes"] != "0")
    # What was said first outlives everything under `oldest`; the window forgets it.
    assert float(share["oldest", "40"]["recalled"]) >= float(share["window", "40"]["recalled"])
    assert (out / "probe.png").stat().st_size > 10_000
    assert "evictions between the fact" in (out / "probe.svg").read_text("utf-8") or (out / "probe.svg").stat().st_size
    assert (out / "probe.md").read_text("utf-8").startswith("| evictions in between |")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--policies", "full"], "evicts nothing"),
        (["--policies", "nope"], "no policy 'nope'"),
        (["--retain", "64"], "nothing to evict"),
        (["--pin-prompt"], "don't fit the 60 slots"),
        (["--probes", "0"], "below 1"),
    ],
)
def test_what_cannot_run_is_refused(arguments, message, tmp_path):
    with pytest.raises(UserError, match=message):
        probe.main(["--out", str(tmp_path), *arguments])
