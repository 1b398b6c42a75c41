"""The report in a real Chromium, without a network: wide and narrow, light and dark, by mouse and by keys."""

from __future__ import annotations

import json
import math

import numpy as np
import pytest

from fabric_ppo.tools.curves import trailing_mean
from fabric_ppo.tools.report.page import write_report
from tests.fixtures.processes import PATIENCE
from tests.fixtures.run_folders import columns, write_run

RETURN = "Rewards/rew_avg"
UPDATES = 30


def noisy(seed, rate):
    """A run's metrics: noise, gaps, a metric of one's own, speeds that differ."""
    rng = np.random.default_rng(seed)
    returns = [None if k % 7 == 3 else float(10 * k * rate + rng.normal()) for k in range(UPDATES)]
    speeds = (50 + 100 * rng.random(UPDATES)).tolist()
    odd = {"Own/number": [math.nan, *rng.normal(size=UPDATES - 1).tolist()]}
    return columns(UPDATES, **{RETURN: returns, "Time/step_per_second": speeds}) | odd


@pytest.fixture(scope="module")
def pages(tmp_path_factory):
    """Pages by name: a run, two groups of three runs, one update, nothing but flags."""
    folder = tmp_path_factory.mktemp("pages")
    long = "a_name_without_any_place_to_break_" * 4
    one = write_run(folder / "one", noisy(0, 1), exp_name=long)
    rates = [(rate, seed) for rate in (0.001, 0.002) for seed in (1, 2, 3)]
    many = [
        write_run(folder / f"{long}{rate}_{seed}", noisy(seed, 1000 * rate), learning_rate=rate, seed=seed)
        for rate, seed in rates
    ]
    short = write_run(folder / "short", columns(1))
    bare = write_run(folder / "bare", columns(1))
    for name in ("metrics.jsonl", "summary.json"):
        (bare / name).unlink()
    runs = {"one": [one], "many": many, "short": [short], "bare": [bare]}
    for name, folders in runs.items():
        write_report(folders, folder / f"{name}.html")
    return folder


class Tab:
    """A page in a tab that is offline; `trouble` collects errors, messages and requests."""

    def __init__(self, browser, path, width=1400, theme="light"):
        size = {"width": width, "height": 900}
        self.context = browser.new_context(viewport=size, color_scheme=theme, offline=True, reduced_motion="reduce")
        self.page = self.context.new_page()
        self.page.set_default_timeout(1000 * PATIENCE)
        self.trouble = []
        self.page.on("console", lambda message: self.trouble.append(message.text))
        self.page.on("pageerror", lambda error: self.trouble.append(str(error)))
        self.page.on("request", lambda request: self.trouble.append(request.url))
        self.page.goto(path.as_uri())
        self.trouble.remove(path.as_uri())

    def drawn(self, kind, tag=RETURN):
        """The series of a kind that a chart shows: name -> (x, y)."""
        every = self.page.evaluate("tag => drawnSeries(tag)", tag)
        return {each["name"]: (each["x"], each["y"]) for each in every if each["kind"] == kind}

    def focused(self):
        return self.page.evaluate("document.activeElement.id || document.activeElement.value || ''")

    def press_until(self, found):
        """Press Tab until an element with this id or value has the focus."""
        for _ in range(200):
            if self.focused() == found:
                return
            self.page.keyboard.press("Tab")
        raise AssertionError(f"Tab does not reach {found}")


@pytest.fixture
def open_page(browser, pages):
    tabs = []

    def open_one(name, **options):
        tabs.append(Tab(browser, pages / f"{name}.html", **options))
        return tabs[-1]

    yield open_one
    for tab in tabs:
        tab.context.close()


def logged(run, tag=RETURN):
    """Transitions, seconds and values of a metric from its log, where it is a number."""
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    seconds = np.cumsum([100 / line["Time/step_per_second"] for line in lines])
    rows = [(line["step"], second, line.get(tag)) for line, second in zip(lines, seconds, strict=True)]
    return np.array([row for row in rows if row[2] is not None and math.isfinite(row[2])]).T


@pytest.mark.parametrize("theme", ["light", "dark"])
@pytest.mark.parametrize("width", [1400, 400])
@pytest.mark.parametrize("name", ["one", "many", "short", "bare"])
def test_the_page_opens_without_trouble(open_page, name, width, theme):
    tab = open_page(name, width=width, theme=theme)
    assert tab.page.evaluate("document.documentElement.scrollWidth") == width
    background = tab.page.evaluate("getComputedStyle(document.body).backgroundColor")
    assert (background == "rgb(20, 23, 27)") == (theme == "dark")
    tab.page.click("#theme")
    assert tab.page.evaluate("getComputedStyle(document.body).backgroundColor") != background
    if name != "bare":
        assert tab.page.evaluate("document.querySelectorAll('.main-chart canvas').length") == 1
    assert tab.trouble == []


def test_what_is_drawn_is_what_was_logged(open_page, pages):
    tab = open_page("one")
    for tag in (RETURN, "Info/grad_norm", "Own/number"):
        steps, seconds, values = logged(pages / "one", tag)
        tab.page.check("input[value=transitions]", force=True)
        x, y = tab.drawn("run", tag)["one"]
        np.testing.assert_allclose([x, y], [steps, values], rtol=1e-5)
        tab.page.check("input[value=wall-time]", force=True)
        x, y = tab.drawn("run", tag)["one"]
        np.testing.assert_allclose([x, y], [seconds, values], rtol=1e-5)


def test_keys_reach_the_controls_and_change_what_is_drawn(open_page, pages):
    """Tab to the axis, an arrow for the other one; Tab to the slider, four arrows for five points."""
    tab = open_page("one")
    _, seconds, values = logged(pages / "one")
    tab.press_until("transitions")
    tab.page.keyboard.press("ArrowRight")
    np.testing.assert_allclose(tab.drawn("run")["one"][0], seconds, rtol=1e-5)
    tab.press_until("smooth")
    for _ in range(4):
        tab.page.keyboard.press("ArrowRight")
    assert tab.page.inner_text("#smooth-text") == "5 points"
    np.testing.assert_allclose(tab.drawn("run")["one"][1], trailing_mean(values, 5), rtol=1e-5)
    np.testing.assert_allclose(tab.drawn("raw")["one"][1], values, rtol=1e-5)
    tab.page.keyboard.press("Home")
    np.testing.assert_allclose(tab.drawn("run")["one"][1], values, rtol=1e-5)
    assert tab.drawn("raw") == {}
    tab.page.keyboard.press("Tab")
    assert tab.page.evaluate("document.activeElement.dataset.tag") == RETURN
    readout = tab.page.locator(".main-chart .readout")
    tab.page.keyboard.press("End")
    assert f"{float(f'{values[-1]:.5g}'):,}" in readout.inner_text()
    tab.page.keyboard.press("ArrowLeft")
    assert f"{float(f'{values[-2]:.5g}'):,}" in readout.inner_text()
    tab.page.keyboard.press("Escape")
    assert readout.inner_text() == ""
    assert tab.trouble == []


def test_whoever_has_the_focus_shows_it(open_page):
    tab = open_page("many")
    order = []
    while (found := tab.page.evaluate("document.activeElement.outerHTML.slice(0, 90)")) not in order[1:]:
        order.append(found)
        tab.page.keyboard.press("Tab")
        style = "getComputedStyle(document.activeElement.matches('input[type=radio]') "
        style += "? document.activeElement.nextElementSibling : document.activeElement).outlineStyle"
        assert tab.page.evaluate(style) != "none" or tab.page.evaluate("document.activeElement === document.body"), (
            found
        )
        if tab.page.evaluate("document.activeElement === document.body"):
            break
    assert len(order) > 20


def test_groups_have_bands_that_can_be_hidden(open_page, pages):
    tab = open_page("many")
    middle, low, high = (tab.drawn(kind) for kind in ("middle", "low", "high"))
    assert list(middle) == ["learning-rate 0.001", "learning-rate 0.002"]
    for name in middle:
        assert np.all(np.array(low[name][1]) <= np.array(middle[name][1]) + 1e-9)
        assert np.all(np.array(middle[name][1]) <= np.array(high[name][1]) + 1e-9)
    singles = tab.drawn("single")
    assert len(singles) == 6
    for name, (x, y) in singles.items():
        steps, _, values = logged(pages / name)
        np.testing.assert_allclose([x, y], [steps, values], rtol=1e-5)
    tab.page.uncheck("#singles")
    assert tab.drawn("single") == {}
    tab.page.click(".chip[data-group='0']")
    assert list(tab.drawn("middle")) == ["learning-rate 0.002"]
    assert tab.trouble == []


def test_bands_are_smoothed_over_as_many_transitions_as_their_runs(open_page):
    tab = open_page("many")
    before, singles = tab.drawn("middle"), [np.array(x) for x, _ in tab.drawn("single").values()]
    tab.page.focus("#smooth")
    tab.page.keyboard.press("End")
    points = int(tab.page.input_value("#smooth"))
    assert points == UPDATES // 3
    # all runs have their points at the same transitions
    width = points * np.diff(singles[0]).mean()
    for name, (x, y) in tab.drawn("middle").items():
        x, whole = np.array(x), np.array(before[name][1])
        expected = [whole[(x > place - width * (1 - 1e-12)) & (x <= place)].mean() for place in x]
        np.testing.assert_allclose(y, expected, rtol=1e-6)
    assert tab.trouble == []


def test_charts_follow_the_width_of_the_window(open_page):
    tab = open_page("one")
    tab.page.set_viewport_size({"width": 400, "height": 900})
    tab.page.wait_for_function("document.querySelector('.main-chart canvas').clientWidth < 400")
    assert tab.page.evaluate("document.documentElement.scrollWidth") == 400


def test_it_prints_light_on_pages_of_paper(open_page, tmp_path):
    tab = open_page("many", theme="dark")
    content = tab.page.pdf(format="A4")
    assert content.startswith(b"%PDF")
    assert content.count(b"/Type /Page\n") > 1 or b"/Type /Pages" in content
    tab.page.emulate_media(media="print")
    assert tab.page.evaluate("getComputedStyle(document.body).backgroundColor") == "rgb(255, 255, 255)"
    assert tab.page.is_hidden(".controls")
    assert tab.trouble == []
