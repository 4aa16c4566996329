"""``python -m jkv.view`` and ``jkv.view(...)``: what is written, what is refused, what importing costs."""

import html
import json
import re
import subprocess
import sys

import numpy as np
import pytest

import jkv
from jkv.errors import UserError
from jkv.report.view import page, picture
from jkv.report.view.history import read_history
from jkv.terminal import command as cli
from tests.view.runs import edit, write_run

HOSTILE = (
    "</script><script>document.title = 'owned'</script><img src=x onerror=\"document.title='owned'\">\u2028\u202e&amp;"
)


def command(capfd, *arguments):
    with pytest.raises(SystemExit) as leaving:
        cli.run(jkv.view.main, [str(a) for a in arguments])
    return leaving.value.code, *capfd.readouterr()


def data_of(text):
    found = re.findall(r'<script type="application/json" id="data">(.*?)</script>', text, re.DOTALL)
    assert len(found) == 1
    return json.loads(found[0])


def test_one_run(tmp_path, capfd):
    run = write_run(tmp_path / "r")
    code, out, err = command(capfd, run, "--id", "p1", "--sample", 0, "--picture", tmp_path / "deep" / "p.png")
    assert (code, err) == (0, "")
    assert out.split() == [str(run / "view.html"), str(tmp_path / "deep" / "p.png")]
    text = (run / "view.html").read_text("utf-8")
    assert not re.search(r"https?:|@import|url\(", text), "nothing is loaded from anywhere"
    data = data_of(text)
    (shown,) = data["runs"]
    assert (data["title"], shown["n"], shown["label"]) == ("p1, sample 0", 90, "random")
    assert (tmp_path / "deep" / "p.png").read_bytes().startswith(b"\x89PNG")


def test_two_runs(tmp_path, capfd):
    one, two = write_run(tmp_path / "a", policy="h2o"), write_run(tmp_path / "b", policy="rkv", retain=39, seed=7)
    out = tmp_path / "both.html"
    assert command(capfd, one, "--beside", two, "--eviction", 2, "--out", out)[0] == 0
    data = data_of(out.read_text("utf-8"))
    assert [run["label"] for run in data["runs"]] == ["h2o", "rkv"]
    assert data["eviction"] == 2
    assert command(capfd, one, two, "--eviction", 2, "--out", tmp_path / "again.html")[0] == 0
    assert (tmp_path / "again.html").read_bytes() == out.read_bytes()


def test_what_is_refused_is_said_in_one_line(tmp_path, capfd):
    run, other = write_run(tmp_path / "r"), write_run(tmp_path / "other", prompt=9)
    strangers = write_run(tmp_path / "strangers", ids=("z",))
    for arguments, message in (
        ((), "RUN: no run is given; give the --out of a decode run made with --trace"),
        ((tmp_path / "none",), "is no directory"),
        ((tmp_path,), "has no samples.jsonl"),
        ((run, "--id", "q"), "has no sample of id 'q'; it has 'p0', 'p1'"),
        ((run, "--eviction", 8), "--eviction: 8 is not among the 7 evictions of 'p0'; give 0 to 7"),
        ((run, "--eviction", -1), "--eviction: -1 is below 0"),
        ((run, "--out", "x.png"), "--out: x.png is not a .html file; --picture writes .png, .svg and .pdf"),
        ((run, "--picture", tmp_path / "x.gif"), "x.gif: is neither a page nor a picture"),
        ((run, "--beside", other), "have different prompts for 'p0'"),
        ((run, strangers), "have no sample in common; compare runs of the same task"),
        ((run, run, run, run, run), "5 runs don't fit side by side; give at most 4"),
        ((run, "--nonsense"), "unrecognized arguments: --nonsense"),
    ):
        code, out, err = command(capfd, *arguments)
        assert code == 2
        assert message in err
        assert err.startswith("error: ")
        assert err.count("\n") == 1
        assert out in ("", f"{run / 'view.html'}\n")


def test_a_config_file_gives_the_same(tmp_path, capfd):
    run = write_run(tmp_path / "r")
    (tmp_path / "view.yaml").write_text(f"runs: ['{run}']\nid: p1\n")
    assert command(capfd, "--config", tmp_path / "view.yaml")[0] == 0
    assert data_of((run / "view.html").read_text("utf-8"))["title"] == "p1, sample 0"


def test_model_text_is_data(tmp_path):
    pieces = [HOSTILE if i % 3 == 0 else f" w{i}" for i in range(90)]
    run = write_run(tmp_path / "r", ids=(HOSTILE,), policy=HOSTILE, pieces=pieces)
    text = jkv.view(run).html
    assert text.count("<script") == text.count("</script>") == 2
    assert "<img" not in text
    assert "\u202e" not in text, "text can't be turned around"
    data = data_of(text)
    assert data["runs"][0]["pieces"][0] == HOSTILE.replace("\u2028", r"\u2028").replace("\u202e", r"\u202e")
    assert "default-src 'none'" in text


def test_in_a_notebook(tmp_path):
    view = jkv.view(write_run(tmp_path / "r"), id="p0", height=500)
    frame = re.fullmatch(r'<iframe [^<>]*sandbox="allow-scripts" srcdoc="([^"]*)"></iframe>', view._repr_html_())
    assert frame is not None
    assert html.unescape(frame[1]) == view.html
    assert "height: 500px" in view._repr_html_()
    assert "p0" in repr(view)
    assert "html" not in vars(view)
    with pytest.raises(UserError, match="is neither a page nor a picture"):
        view.save(tmp_path / "x.txt")
    view.save(tmp_path / "x.html")
    assert (tmp_path / "x.html").read_text("utf-8") == view.html


def test_importing_is_cheap():
    script = "import sys, jkv; a = len(sys.modules); jkv.view.parse; print('jax' in sys.modules, 'rich' in sys.modules)"
    assert subprocess.check_output([sys.executable, "-c", script], text=True).split() == ["False", "False"]
    with pytest.raises(AttributeError, match="no attribute 'nothing'"):
        jkv.nothing  # noqa: B018
    assert "view" in dir(jkv)
    assert callable(jkv.view)


def test_every_score_or_every_kth(tmp_path):
    run = write_run(tmp_path / "r", layers=2, heads=2)
    history = read_history(run, "p0")
    assert history.scores is not None
    everything = page.encode_scores(history)
    assert everything is not None
    assert everything["events"] == list(range(7))
    assert (everything["sizes"], everything["mean"]) == ([40] * 7, False)
    few = page.encode_scores(history, most=600)  # 7 * 160 are there; the mean over heads of each is about 7 * 50
    assert few is not None
    assert few["mean"]
    assert few["events"] == list(range(7))
    # By hand: the mean over the heads that hold a token.
    event, total = 3, {}
    for layer in range(2):
        for head in range(2):
            gone = history.gone[layer, head]
            here = [p for p in range(int(history.positions[event]) + 1) if gone[p] >= event]
            for p, score in zip(here, history.scores[event][layer, head], strict=True):
                total.setdefault(p, []).append(float(score))
    row = page._mean_of_heads(history, event)
    np.testing.assert_allclose(row, [np.mean(total[p]) for p in sorted(total)], rtol=1e-6)
    shared = read_history(write_run(tmp_path / "s", retain=39), "p0")
    thinned = page.encode_scores(shared, most=500)
    assert thinned is not None
    assert thinned["events"][-1] == shared.evictions - 1
    assert sum(thinned["sizes"]) <= 500 + 40
    assert set(np.diff(thinned["events"])) == {4}


@pytest.mark.parametrize(
    ("tokens", "heads", "eviction", "suffix"),
    [(90, 1, None, "svg"), (90, 2, 2, "pdf"), (90, 2, None, "png"), (900, 1, 0, "png")],
)
def test_pictures(tmp_path, suffix, tokens, heads, eviction):
    pieces = [["$x_1^", "\n\n", "数", "\u202e", "w" * 120, " word"][i % 6] for i in range(tokens)]
    runs = [write_run(tmp_path / n, tokens=tokens, pieces=pieces, heads=heads, sinks=2) for n in "ab"]
    jkv.view(*runs[: 2 if heads == 1 else 1], eviction=eviction).save(tmp_path / f"x.{suffix}")
    assert len((tmp_path / f"x.{suffix}").read_bytes()) > 5000


def test_a_picture_has_the_page_s_colours():
    colours = picture.colours()
    assert colours["kept"] == "#bcdcf5"
    assert {f"gone-{i}" for i in range(8)} | {f"part-{i}" for i in range(8)} < colours.keys()


def test_a_sample_without_evictions_and_one_without_scores(tmp_path):
    short = jkv.view(write_run(tmp_path / "short", tokens=30))
    short.save(tmp_path / "x.png")
    assert data_of(short.html)["runs"][0]["scores"] is None
    run = write_run(tmp_path / "plain", scores=False)
    (run / "summary.json").unlink()
    edit(run, "samples.jsonl", lambda rows: [{k: v for k, v in row.items() if k != "pieces"} for row in rows])
    view = jkv.view(run)
    view.save(tmp_path / "y.png")
    assert data_of(view.html)["runs"][0]["label"] == str(run)
