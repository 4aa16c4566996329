"""The page in a real browser: headless Chromium, driven by its own driver; nothing is downloaded."""

import pathlib
import shutil
import time

import pytest

import jkv
from jkv.report.view.history import read_history
from tests.view.runs import WORDS, write_run

CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
DRIVER = shutil.which("chromedriver")
pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(not (CHROMIUM and DRIVER), reason="Chromium and its driver aren't installed"),
]
HOSTILE = "<script>document.title='owned'</script><img src=x onerror=\"document.title='owned'\"></script>"
OPTIONS = (
    "headless", "no-sandbox", "disable-gpu", "disable-quic", "no-first-run", "disable-background-networking",
    "disable-component-update", "disable-sync",
)  # fmt: skip
FRAMES = "const done = arguments[0]; requestAnimationFrame(() => requestAnimationFrame(() => done()))"


class Browser:
    """Pages opened from files, and what tests ask of them."""

    def __init__(self, driver):
        self.driver = driver

    def open(self, path: pathlib.Path) -> float:
        """Seconds until the page is drawn."""
        started = time.perf_counter()
        self.driver.get(path.as_uri())
        self.driver.execute_async_script(FRAMES)
        return time.perf_counter() - started

    def js(self, script: str):
        return self.driver.execute_script(script)

    def errors(self) -> list[str]:
        return [entry["message"] for entry in self.driver.get_log("browser")]

    def classes(self, panel: int = 0) -> list[str]:
        """Of every token, without the mark of the newest."""
        tokens = f"document.querySelectorAll('.panel')[{panel}].querySelectorAll('.text b')"
        return self.js(f"return Array.from({tokens}, (b) => b.className.replace(' here', ''))")

    def set(self, id: str, value: int, event: str = "input") -> None:
        """Move the slider, or choose from a picker, as a person would."""
        self.js(f"const x = document.getElementById('{id}'); x.value = {value}; x.dispatchEvent(new Event('{event}'))")

    def emulate(self, width: int, height: int, *, dark: bool = False) -> None:
        size = {"width": width, "height": height, "deviceScaleFactor": 1, "mobile": False}
        self.driver.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", size)
        scheme = {"name": "prefers-color-scheme", "value": "dark" if dark else "light"}
        self.driver.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": [scheme]})

    def hover(self, position: int) -> str:
        """Move the mouse to a token; what is said about it."""
        from selenium.webdriver.common.action_chains import ActionChains

        token = self.js(f"return document.querySelectorAll('.text b')[{position}]")
        self.driver.execute_script("arguments[0].scrollIntoView({block: 'center'})", token)
        self.driver.execute_async_script(FRAMES)
        ActionChains(self.driver).move_to_element(token).perform()
        said, until = "", time.monotonic() + 10  # a busy machine delivers the mouse late
        while not said and time.monotonic() < until:
            said = self.js("const tip = document.getElementById('tip'); return tip.hidden ? '' : tip.textContent")
        return said


@pytest.fixture(scope="module")
def browser(tmp_path_factory):
    from selenium.webdriver import Chrome
    from selenium.webdriver.chrome.options import Options
    from selenium.webdriver.chrome.service import Service

    options = Options()
    options.binary_location = str(CHROMIUM)
    for option in (*OPTIONS, f"user-data-dir={tmp_path_factory.mktemp('chromium')}"):
        options.add_argument(f"--{option}")
    options.set_capability("goog:loggingPrefs", {"browser": "ALL"})
    driver = Chrome(options=options, service=Service(DRIVER))
    try:
        yield Browser(driver)
    finally:
        driver.quit()


@pytest.fixture(autouse=True)
def desktop(request):
    request.getfixturevalue("browser").emulate(1400, 900)


def page(tmp_path, *runs, **options) -> pathlib.Path:
    out = tmp_path / "page.html"
    jkv.view(*runs, **options).save(out)
    return out


def keys(browser, *names):
    from selenium.webdriver.common.action_chains import ActionChains
    from selenium.webdriver.common.keys import Keys

    chain = ActionChains(browser.driver)
    for name in names:
        chain.send_keys(getattr(Keys, name))
    chain.perform()


def test_the_slider_changes_the_colours(browser, tmp_path):
    run = write_run(tmp_path / "r", sinks=2)
    history = read_history(run, "p0")
    browser.open(page(tmp_path, run, id="p0"))
    assert browser.errors() == []
    last = browser.classes()
    assert last[0] == "pinned"
    assert last[-1] == "window"
    assert browser.js("return document.getElementById('slider').max") == "8"
    for count in range(8):
        browser.set("slider", count)
        now = browser.classes()
        position = int(history.positions[max(count - 1, 0)])
        for p, word in enumerate(now):
            expected = "later" if p > position else "gone" if history.gone[0, 0, p] < count else "here"
            assert word.split()[0] in {"here": ("kept", "window", "sink", "pinned")}.get(expected, (expected,)), (
                p,
                count,
            )
        assert browser.js("return document.getElementById('moment').textContent").startswith(
            f"after eviction {count} of 7" if count else "before the first eviction"
        )
    kinds = {"kept": 60, "window": 3, "gone": 40}
    colours = [
        browser.js(f"return getComputedStyle(document.querySelector('.text b.{k}')).backgroundColor") for k in kinds
    ]
    assert len(set(colours)) == len(kinds)
    assert browser.errors() == []


def test_a_click_on_the_chart_goes_there(browser, tmp_path):
    from selenium.webdriver.common.action_chains import ActionChains

    run = write_run(tmp_path / "r", ids=("long",), tokens=3000, budget=300, retain=200)
    browser.open(page(tmp_path, run))
    canvas = browser.driver.find_element("css selector", "canvas")
    ActionChains(browser.driver).move_to_element_with_offset(canvas, 0, 30).click().perform()
    value = browser.js("return Number(document.getElementById('slider').value)")
    history = read_history(run)
    # The axis leaves 46 pixels on the left and 8 on the right; the last eviction up to the place, of one every 100.
    width = browser.js("return document.querySelector('canvas').clientWidth")
    place = (width / 2 - 46) / (width - 54) * 2999
    assert -15 < place - history.positions[value - 1] < 115
    seen = "const a = document.querySelector('.here').getBoundingClientRect(), t = document.querySelector('.text');"
    seen += "const b = t.getBoundingClientRect(); return t.scrollTop > 0 && a.top > b.top && a.bottom < b.bottom"
    assert browser.js(seen)
    assert browser.errors() == []


def test_keys_move_the_slider(browser, tmp_path):
    browser.open(page(tmp_path, write_run(tmp_path / "r"), eviction=2))
    value = lambda: browser.js("return document.getElementById('slider').value")
    assert value() == "2"
    for key, expected in (("ARROW_RIGHT", "3"), ("ARROW_LEFT", "2"), ("HOME", "0"), ("ARROW_LEFT", "0"), ("END", "8")):
        keys(browser, key)
        assert value() == expected
    browser.js("document.getElementById('slider').focus()")
    keys(browser, "ARROW_LEFT")
    assert value() == "7", "once, not twice"
    browser.driver.find_element("id", "back").click()
    assert value() == "6"


def test_hover_shows_the_score(browser, tmp_path):
    run = write_run(tmp_path / "r")
    history = read_history(run, "p0")
    assert history.scores is not None
    browser.open(page(tmp_path, run, id="p0", eviction=3))
    gone = next(p for p in range(10, 90) if history.gone[0, 0, p] == 1)
    there = [p for p in range(90) if history.gone[0, 0, p] >= 1 and p <= history.positions[1]]
    score = history.scores[1][0, 0, there.index(gone)]
    said = browser.hover(gone)
    assert f"token {gone}, thought" in said
    assert f"evicted at eviction 2, at token {history.positions[1]}" in said
    found = float(said.split("score ")[1].split(" ")[0].replace("−", "-"))
    assert found == pytest.approx(float(score), rel=1e-3)
    rank = 1 + sum(x > score for x in history.scores[1][0, 0] if x != float("inf"))
    assert f"at eviction 2, rank {rank} of 25" in said
    assert "pinned prompt" in browser.hover(2)
    assert "score: protected at eviction 3" in browser.hover(2)
    assert "not written yet" in browser.hover(85)
    browser.open(page(tmp_path, write_run(tmp_path / "plain", scores=False)))
    assert "this trace has no scores" in browser.hover(40)
    assert browser.errors() == []


def test_heads(browser, tmp_path):
    run = write_run(tmp_path / "r", layers=2, heads=3)
    history = read_history(run, "p0")
    browser.open(page(tmp_path, run, id="p0"))
    assert any(word.startswith("part") for word in browser.classes())
    held = (history.gone == history.evictions).sum((0, 1))
    several = next(p for p in range(10, 80) if held[p] in (2, 3, 4))
    assert "mean of the heads at eviction 7" in browser.hover(several)
    browser.set("layer", 1, "change")
    browser.set("head", 2, "change")
    for p, word in enumerate(browser.classes()):
        assert word.startswith("gone") == bool(history.gone[1, 2, p] < history.evictions)
        assert not word.startswith("part")
    assert browser.errors() == []


def test_two_policies_side_by_side(browser, tmp_path):
    one, two = write_run(tmp_path / "a"), write_run(tmp_path / "b", retain=39, tokens=80, seed=5)
    histories = [read_history(run, "p0") for run in (one, two)]
    browser.open(page(tmp_path, one, two, id="p0"))
    times = sorted({int(p) for history in histories for p in history.positions})
    browser.set("slider", 9)
    for panel, history in enumerate(histories):
        count = int((history.positions <= times[8]).sum())
        for p, word in enumerate(browser.classes(panel)):
            assert word.startswith("gone") == bool(history.gone[0, 0, p] < count)
        state = browser.js(f"return document.querySelectorAll('.state')[{panel}].textContent")
        assert state.startswith(f"eviction {count} of {history.evictions}: ")
    assert browser.errors() == []


def test_hostile_text_is_shown_and_never_runs(browser, tmp_path):
    pieces = [HOSTILE if i % 3 == 0 else f" w{i}" for i in range(90)]
    run = write_run(tmp_path / "r", ids=(HOSTILE,), policy=HOSTILE, pieces=pieces)
    browser.open(page(tmp_path, run))
    assert browser.js("return document.title") == f"{HOSTILE}, sample 0"
    assert browser.js("return document.querySelectorAll('.text b')[30].textContent") == HOSTILE
    assert browser.js("return document.querySelectorAll('img, .panel script').length") == 0
    assert HOSTILE in browser.hover(30)
    # Were markup to slip through, the page's policy would not let it run.
    assert browser.errors() == []
    browser.js(
        """const image = document.createElement('img');
        image.setAttribute('onerror', "document.title = 'owned'");
        image.src = 'x';
        document.body.append(image);"""
    )
    browser.driver.execute_async_script(FRAMES)
    assert browser.js("return document.title") != "owned"
    assert browser.errors() != [], "what was blocked"


@pytest.mark.parametrize("newlines", [True, False])
def test_16000_tokens_open_in_3_seconds(browser, tmp_path, newlines):
    words = [WORDS[i % len(WORDS)] + ("\n" if newlines and i % 23 == 0 else " ") for i in range(16_000)]
    run = write_run(
        tmp_path / "r", ids=("long",), tokens=16_000, prompt=120, budget=2500, retain=2188, window=312, pieces=words
    )
    out = page(tmp_path, run)
    assert out.stat().st_size < 2_000_000
    assert browser.open(out) < 3
    assert len(browser.classes()) == 16_000
    moved = browser.js(
        "const s = document.getElementById('slider'), t = performance.now();"
        "s.value = 9; s.dispatchEvent(new Event('input')); document.body.offsetHeight; return performance.now() - t"
    )
    assert moved < 1000
    assert "score" in browser.hover(3000)
    assert browser.errors() == []


@pytest.mark.parametrize("width", [320, 420, 1400])
@pytest.mark.parametrize("dark", [False, True])
def test_nothing_is_cut_off_at_any_width(browser, tmp_path, width, dark):
    browser.emulate(width, 800, dark=dark)
    browser.open(page(tmp_path, write_run(tmp_path / "a", heads=2), write_run(tmp_path / "b"), id="p0"))
    wide = browser.js("return [document.documentElement.scrollWidth, document.documentElement.clientWidth]")
    assert wide[0] <= wide[1]
    ground = browser.js("return getComputedStyle(document.body).backgroundColor")
    assert ground == ("rgb(20, 23, 27)" if dark else "rgb(255, 255, 255)")
    # Ink against every ground, by WCAG's contrast: 4.5 is its level for text.
    contrast = """
      const linear = (x) => (x <= 0.04045 ? x / 12.92 : ((x + 0.055) / 1.055) ** 2.4);
      const light = (colour) => {
        const [r, g, b] = colour.match(/[\\d.]+/g).map((x) => linear(x / 255));
        return 0.2126 * r + 0.7152 * g + 0.0722 * b;
      };
      const out = {}, names = ['kept', 'window', 'sink', 'pinned'];
      for (let i = 0; i < 8; i++) names.push(`gone gone-${i}`, `part part-${i}`);
      for (const name of names) {
        const token = document.createElement('b');
        token.className = name;
        document.querySelector('.tokens').append(token);
        const style = getComputedStyle(token), x = light(style.color), y = light(style.backgroundColor);
        out[name] = (Math.max(x, y) + 0.05) / (Math.min(x, y) + 0.05);
        token.remove();
      }
      return out;"""
    assert {name: ratio for name, ratio in browser.js(contrast).items() if ratio < 4.5} == {}
    assert browser.errors() == []


def test_a_notebook_s_frame(browser, tmp_path):
    frame = jkv.view(write_run(tmp_path / "r"))._repr_html_()
    (tmp_path / "notebook.html").write_text(f"<!doctype html><meta charset=utf-8><title>n</title>{frame}", "utf-8")
    browser.open(tmp_path / "notebook.html")
    browser.driver.switch_to.frame(0)
    try:
        assert len(browser.classes()) == 90
    finally:
        browser.driver.switch_to.default_content()
    assert browser.errors() == []
