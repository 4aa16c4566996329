"""The figures: all that they must show is there, and nothing lies on anything else."""

import itertools
import json

import pytest
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.text import Text

from jkv.errors import UserError
from jkv.report.figure import draw_figure
from jkv.report.policies_figure import draw_policies
from jkv.report.published import read_published
from tests.report.results import measured, result

BUDGETS = (2500, 3000, 3500, 4000, 4500, 5000)
PAPER = read_published("paper")


def like_the_paper(model: str) -> list:
    panel = PAPER.panels[model]
    assert panel.throughput_tps is not None
    pairs = zip(BUDGETS, panel.pass_at_1, panel.throughput_tps, strict=True)
    return [measured(model, "dynts", budget, value / 100, 0.03, tps) for budget, value, tps in pairs]


CASES = {
    "like the paper": [r for model in PAPER.panels for r in like_the_paper(model)],
    "low": [measured(m, "dynts", b, 0.004 * i, 0.02, 100 + i) for m in "ab" for i, b in enumerate(BUDGETS)],
    "high": [measured(m, "dynts", b, 1 - 0.01 * i, 0.01, 9e5) for m in "ab" for i, b in enumerate(BUDGETS)],
    "wide": [measured(m, "dynts", b, 0.5, 0.5, 3.0 + i) for m in "ab" for i, b in enumerate(BUDGETS)],
    "one": [measured("some/model", "dynts", 64, 0.3, 0.1, 12.0)],
}


@pytest.fixture
def drawn(monkeypatch):
    """The figures that would be saved."""
    figures: list[Figure] = []
    for module in ("figure", "policies_figure"):
        monkeypatch.setattr(f"jkv.report.{module}.save_figure", lambda f, path: figures.append(f))
    return figures


def renderer_of(figure: Figure):
    """After the layout is settled."""
    canvas = FigureCanvasAgg(figure)
    canvas.draw()
    return canvas.get_renderer()


def texts(figure: Figure) -> list:
    """Every visible piece of text with its extent, tick labels included."""
    renderer = renderer_of(figure)
    found = [t for t in figure.findobj(Text) if t.get_text() and t.get_visible()]
    return [(t.get_text(), t.get_window_extent(renderer)) for t in found]


def overlapping(figure: Figure) -> list:
    pairs = itertools.combinations(texts(figure), 2)
    return [(a, b) for (a, box), (b, other) in pairs if box.padded(-1).overlaps(other.padded(-1))]


@pytest.mark.parametrize("overlay", [None, PAPER], ids=["plain", "overlay"])
@pytest.mark.parametrize("case", CASES)
def test_no_text_lies_on_another(case, overlay, drawn, tmp_path):
    draw_figure(tmp_path, CASES[case], "dynts", overlay, {})
    (figure,) = drawn
    assert overlapping(figure) == []


@pytest.mark.parametrize("case", CASES)
def test_no_marker_lies_on_an_interval(case, drawn, tmp_path):
    draw_figure(tmp_path, CASES[case], "dynts", PAPER, {})
    (figure,) = drawn
    renderer_of(figure)
    half = len(figure.axes) // 2
    for axes, twin in zip(figure.axes[:half], figure.axes[half:], strict=True):
        (whiskers,) = axes.collections
        intervals = [axes.transData.transform(segment) for segment in whiskers.get_segments()]
        marks = [(line, owner) for owner in (axes, twin) for line in owner.lines if line.get_marker() in ("o", "D")]
        assert marks
        for line, owner in marks:
            for x, _ in owner.transData.transform(line.get_xydata()):
                # A marker's radius and a cap's half are in points; half a point for their edges.
                apart = (line.get_markersize() / 2 + 3 + 0.5) * figure.dpi / 72
                assert all(abs(x - interval[0][0]) > apart for interval in intervals)


def test_what_the_figure_shows(drawn, tmp_path):
    draw_figure(tmp_path, CASES["like the paper"], "dynts", PAPER, {})
    (figure,) = drawn
    left, right = figure.axes[:2], figure.axes[2:]
    for axes, twin, model in zip(left, right, PAPER.panels, strict=True):
        panel = PAPER.panels[model]
        assert axes.get_title() == model
        assert [bar.get_height() for bar in axes.patches] == pytest.approx(panel.pass_at_1)
        assert [t.get_text() for t in axes.get_xticklabels()] == [str(b) for b in BUDGETS]
        assert {f"{value:.1f}" for value in panel.pass_at_1} <= {t.get_text() for t in axes.texts}
        line, hollow = twin.lines
        assert list(line.get_ydata()) == list(hollow.get_ydata()) == panel.throughput_tps
        assert hollow.get_markerfacecolor() == axes.lines[-1].get_markerfacecolor() == "none"
        (whiskers,) = (c for c in axes.collections if len(c.get_segments()) == len(BUDGETS))
        assert [s[1][1] - s[0][1] for s in whiskers.get_segments()] == pytest.approx([6.0] * len(BUDGETS))
    (legend,) = figure.legends
    assert [t.get_text() for t in legend.get_texts()] == [
        "Pass@1, 95 % interval", "Pass@1, published", "throughput, tokens/s", "throughput, published",
    ]  # fmt: skip


def test_the_line_never_runs_through_a_value(drawn, tmp_path):
    draw_figure(tmp_path, CASES["like the paper"], "dynts", None, {})
    (figure,) = drawn
    renderer = renderer_of(figure)
    for axes, twin in zip(figure.axes[:2], figure.axes[2:], strict=True):
        path = twin.lines[0].get_path().transformed(twin.transData)
        for value in axes.texts:
            assert not path.intersects_bbox(value.get_window_extent(renderer), filled=False)


def test_the_same_results_give_the_same_bytes(tmp_path):
    for name in "ab":
        (tmp_path / name).mkdir()
        draw_figure(tmp_path / name, CASES["one"], "dynts", None, {})
        draw_policies(tmp_path / name, CASES["one"])
    for file in ("figure.png", "figure.svg", "policies.png", "policies.svg"):
        assert (tmp_path / "a" / file).read_bytes() == (tmp_path / "b" / file).read_bytes()
        if file.endswith("png"):
            assert (tmp_path / "a" / file).stat().st_size > 10_000
        else:
            assert (tmp_path / "a" / file).read_text("utf-8").startswith("<?xml")


def test_nothing_finished_nothing_drawn(tmp_path):
    draw_figure(tmp_path, [measured("m", "full", None, 1.0, 0.0, 1.0)], "dynts", None, {})
    draw_policies(tmp_path, [result("dynts", 8, {}, pass_at_1=None)])
    assert list(tmp_path.iterdir()) == []


def test_what_is_not_graded_still_has_its_throughput(drawn, tmp_path):
    draw_figure(tmp_path, [result("dynts", 8, {}, pass_at_1=None)], "dynts", None, {})
    assert list(drawn[0].axes[1].lines[0].get_ydata()) == [1234.5]


def test_the_picture_of_policies(drawn, tmp_path):
    results = [measured("m", "full", None, 0.9, 0.02, 1.0)]
    labels = [f"policy {i}" for i in range(20)]
    results += [measured("m", name, b, 0.03 * i, 0.1, 1.0) for i, name in enumerate(labels) for b in BUDGETS]
    results += [measured("m", "chance", b, 0.2, 0.1, 1.0, policy="random", pin_prompt=True) for b in BUDGETS]
    draw_policies(tmp_path, results)
    (figure,) = drawn
    assert overlapping(figure) == []
    (axes,) = figure.axes
    lines = {line.get_label(): line for line in axes.lines}
    assert len(axes.lines) == 22
    (dashed,) = [line for line in lines.values() if line.get_linestyle() == "--"]
    assert list(dashed.get_ydata()) == [90.0, 90.0]
    (dotted,) = [line for line in axes.lines if line.get_linestyle() == ":"]
    assert list(dotted.get_ydata()) == [20.0] * 6
    styles = {(line.get_color(), line.get_marker()) for line in axes.lines if line.get_linestyle() == "-"}
    assert len(styles) == 20
    (legend,) = figure.legends
    assert [t.get_text() for t in legend.get_texts()] == ["full, whole cache", *labels, "chance"]


def test_published_values_are_those_of_the_paper():
    panel = PAPER.of("somewhere", "deepseek-ai/DeepSeek-R1-Distill-Qwen-7B")
    assert panel is PAPER.panels["R1-Qwen"] is PAPER.of("R1-Qwen")
    assert panel.pass_at_1 == [49.8, 52.6, 54.1, 54.3, 54.3, 56.3]
    assert tuple(PAPER.budgets) == BUDGETS
    assert "arXiv:2601.18383" in PAPER.source
    assert PAPER.of("demo-llama") is None


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (None, "can't be read"),
        ("{", "is not JSON"),
        ("[]", "the file: "),
        ('{"title": "t", "source": "s", "budgets": [1, 2], "panels": {"m": {"pass_at_1": [1.0]}}}', "1 values for 2"),
        ('{"title": "t", "source": "s", "budgets": [1], "panels": {"m": {}}}', "panels.m.pass_at_1"),
    ],
)
def test_what_is_no_published_figure_is_refused(text, message, tmp_path):
    path = tmp_path / "figure.json"
    if text is not None:
        path.write_text(text, "utf-8")
    with pytest.raises(UserError, match=message):
        read_published(str(path))


def test_a_published_figure_of_ones_own(tmp_path):
    path = tmp_path / "figure.json"
    mine = {"title": "t", "source": "s", "budgets": [8], "panels": {"m": {"pass_at_1": [50.0]}}}
    path.write_text(json.dumps(mine), "utf-8")
    draw_figure(tmp_path, [measured("m", "dynts", 8, 0.3, 0.1, 12.0)], "dynts", read_published(str(path)), {})
    assert (tmp_path / "figure.png").exists()
