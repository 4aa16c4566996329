"""Reading a trace: what became of every token, and one clear line for everything that isn't a trace."""

import json
import shutil

import numpy as np
import pytest

from jkv.errors import UserError
from jkv.report.view import fate
from jkv.report.view.history import common_sample, read_history
from tests.view.runs import edit, eviction_rows, write_run


@pytest.mark.parametrize(("layers", "heads", "retain"), [(1, 1, 32), (1, 1, 39), (2, 3, 30)])
def test_who_is_there_after_each_eviction(tmp_path, layers, heads, retain):
    run = write_run(tmp_path / "r", layers=layers, heads=heads, retain=retain)
    history = read_history(run, "p1")
    rows = eviction_rows(90, 10, 40, retain, window=5, sinks=0, pin=True, sets=layers * heads, seed=1)
    assert history.evictions == len(rows) > 3
    gone = history.gone.reshape(layers * heads, 90)
    assert history.scores is not None
    for event, row in enumerate(rows):
        written = np.arange(90) <= row["position"]
        assert history.positions[event] == row["position"]
        assert history.kept[event] == retain
        for s in range(layers * heads):
            assert np.flatnonzero((gone[s] > event) & written).tolist() == row["kept"][s]
            scores = history.scores[event].reshape(layers * heads, -1)[s]
            expected = [np.inf if x is None else x for x in row["scores"][s]]
            np.testing.assert_array_equal(scores, np.array(expected, np.float32))
            assert ((gone[s] >= event) & written).sum() == len(scores)


def test_fates_of_a_small_trace(tmp_path):
    run = write_run(tmp_path / "r", ids=("a",), tokens=8, prompt=2, budget=5, retain=3, window=1, sinks=1, pin=False)
    edit(run, "trace.jsonl", lambda rows: [
        {**rows[0], "kept": [0, 2, 4], "scores": [None, 1, 2, 3, None]},
        {**rows[1], "kept": [0, 2, 6], "scores": [None, 5, 4, 3, None]},
    ])  # fmt: skip
    history = read_history(run)
    assert history.gone.tolist() == [[[2, 0, 2, 0, 1, 1, 2, 2]]]
    names = lambda eviction: [fate.NAMES[kind] for kind in fate.fates(history, fate.moment(history, eviction))[0]]
    assert names(0) == ["sink", "kept", "kept", "kept", "window", "later", "later", "later"]
    assert names(1) == ["sink", "gone", "kept", "gone", "window", "later", "later", "later"]
    assert names(2) == ["sink", "gone", "kept", "gone", "gone", "gone", "window", "later"]
    assert names(None) == ["sink", "gone", "kept", "gone", "gone", "gone", "window", "window"]
    times, slots = fate.occupancy(history)
    assert (times.tolist(), slots.tolist()) == ([0, 4, 4, 6, 6, 6], [1, 5, 3, 5, 3, 3])
    assert history.pieces[0] == "</think>"
    assert history.thought_end == 8, "one in the prompt ends no thought"


def test_share_of_heads(tmp_path):
    history = read_history(write_run(tmp_path / "r", layers=2, heads=2))
    kinds, shades = fate.fates(history, fate.moment(history))
    share = (history.gone == history.evictions).mean((0, 1))
    part = (share > 0) & (share < 1)
    assert part.any()
    assert (kinds[part] == fate.PART).all()
    assert (shades[part] == np.floor(8 * share[part])).all()
    assert (kinds[share == 0] == fate.GONE).all()


@pytest.mark.parametrize("sets", [(1, 1), (2, 2)])
def test_lifetimes_agree_with_counting(tmp_path, sets):
    history = read_history(write_run(tmp_path / "r", layers=sets[0], heads=sets[1]))
    share, kind = fate.lifetimes(history, 90, 90, 90)
    for time in range(90):
        count = int((history.positions <= time).sum())
        held = history.held(count)
        np.testing.assert_allclose(share[: time + 1, time], held[: time + 1], atol=1e-12)
        assert np.isnan(share[time + 1 :, time]).all()
    assert (kind[:10] == fate.PINNED).all()


def test_a_trace_without_scores_or_summary_still_shows(tmp_path):
    run = write_run(tmp_path / "r", scores=False)
    (run / "summary.json").unlink()
    edit(run, "samples.jsonl", lambda rows: [{k: v for k, v in row.items() if k != "pieces"} for row in rows])
    history = read_history(run)
    assert history.scores is None
    assert history.rule.budget is None
    assert history.text_missing
    assert history.pieces[0] == "[prompt] "
    assert history.pieces[-1] == "[5] "


def test_a_sample_that_evicted_nothing(tmp_path):
    history = read_history(write_run(tmp_path / "r", tokens=30))
    assert history.evictions == 0
    assert (history.held(0) == 1).all()
    kinds, _ = fate.fates(history, fate.moment(history))
    assert set(kinds.tolist()) == {fate.PINNED, fate.KEPT, fate.WINDOW}


def test_which_sample_is_shown(tmp_path):
    run = write_run(tmp_path / "r", ids=("a", "b", 'c "quoted" \u2028'))
    edit(run, "trace.jsonl", lambda rows: [r for r in rows if (r["id"], r["event"]) < ("a", 3) or r["id"] > "a"])
    edit(run, "samples.jsonl", lambda rows: [{**rows[0], "evictions": 3}, *rows[1:]])
    assert common_sample([run], None, None) == ("b", 0)
    assert read_history(run, "a").evictions == 3
    assert read_history(run, 'c "quoted" \u2028').id.startswith("c ")
    other = write_run(tmp_path / "s", ids=("a",))
    assert common_sample([run, other], None, None) == ("a", 0)


def spoil_event(rows):
    return [rows[0], {**rows[1], "event": 5}, *rows[2:]]


def spoil_order(rows):
    return [{**rows[0], "kept": rows[0]["kept"][::-1]}, *rows[1:]]


def spoil_return(rows):
    dropped = next(p for p in range(40) if p not in rows[0]["kept"])
    return [rows[0], {**rows[1], "kept": sorted({*rows[1]["kept"], dropped})}, *rows[2:]]


def spoil_scores(rows):
    return [{**rows[0], "scores": rows[0]["scores"][1:]}, *rows[1:]]


@pytest.mark.parametrize(
    ("name", "change", "message"),
    [
        ("trace.jsonl", lambda rows: rows[:-1], "has 6 of the 7 evictions of 'p1'"),
        ("trace.jsonl", lambda rows: ["{nonsense", *rows], "trace.jsonl:1: is not an eviction"),
        ("trace.jsonl", spoil_event, "trace.jsonl:2: is not eviction 1 of its sample"),
        ("trace.jsonl", spoil_order, "trace.jsonl:1: its kept positions don't ascend from 0 to 39"),
        ("trace.jsonl", spoil_return, "trace.jsonl:2: it keeps a token that an earlier eviction dropped"),
        ("trace.jsonl", spoil_scores, "trace.jsonl:1: has 39 scores for 40 tokens"),
        ("trace.jsonl", lambda rows: [{**rows[0], "kept": ["x"]}], "its kept are no list of numbers"),
        ("trace.jsonl", lambda rows: [{**rows[0], "kept": [[1], [1, 2]]}], "its kept are no list of numbers"),
        ("trace.jsonl", lambda rows: [{**rows[0], "kept": [2**70]}], "its kept are no list of numbers"),
        ("samples.jsonl", lambda rows: [{"id": "p0"}], "samples.jsonl:1: is not a sample"),
        ("samples.jsonl", lambda rows: [], "has no finished sample yet"),
        ("samples.jsonl", lambda rows: [{**rows[0], "pieces": ["a"]}, rows[1]], "are not the text of its 90 tokens"),
    ],
)
def test_damage_is_named(tmp_path, name, change, message):
    run = write_run(tmp_path / "r")
    only = (lambda rows: change([r for r in rows if r["id"] == "p0"])) if name == "trace.jsonl" else change
    if message.startswith("has 6"):
        edit(run, name, change)
    else:
        edit(run, name, only)
    with pytest.raises(UserError, match=message.replace("(", r"\(")):
        read_history(run, "p1" if message.startswith("has 6") else "p0")


def test_what_is_no_run(tmp_path):
    with pytest.raises(UserError, match="is no directory; give the --out of a decode run"):
        read_history(tmp_path / "nowhere")
    with pytest.raises(UserError, match=r"has no samples\.jsonl"):
        read_history(tmp_path)
    run = write_run(tmp_path / "r")
    with pytest.raises(UserError, match=r"has no sample of id 'q' and sample 3; it has 'p0', 'p1'"):
        read_history(run, "q", 3)
    torn = shutil.copytree(run, tmp_path / "torn")
    with open(torn / "trace.jsonl", "a") as file:
        file.write('{"id": "p9", "samp')
    with pytest.raises(UserError, match=r"trace\.jsonl:15: its last line is torn; run the same decode command again"):
        read_history(torn)
    (run / "summary.json").write_text("{}")
    with pytest.raises(UserError, match=r"summary\.json: is damaged"):
        read_history(run)
    (run / "trace.jsonl").unlink()
    with pytest.raises(UserError, match=r"has no trace\.jsonl; write one with python -m jkv\.decode --trace"):
        read_history(run)


def test_runs_without_a_common_sample(tmp_path):
    runs = [write_run(tmp_path / name, ids=(name,)) for name in ("a", "b")]
    with pytest.raises(UserError, match="have no sample in common"):
        common_sample(runs, None, None)
    assert json.loads((runs[0] / "summary.json").read_text())["policy"] == "random"
