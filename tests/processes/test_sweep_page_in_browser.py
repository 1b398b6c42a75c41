"""The page of a sweep in a real Chromium, without a network: wide and narrow, light and dark, by mouse and by keys."""

from __future__ import annotations

import json
import re

import pytest

from fabric_ppo.tools.sweep.page import write_page
from fabric_ppo.tools.sweep.study import RETURNS, Sweep
from tests.fixtures.processes import PATIENCE
from tests.fixtures.sweeps import SPACE, settings, storage_url

pytest.importorskip("optuna")


@pytest.fixture(scope="module")
def pages(tmp_path_factory):
    """Pages of sweeps with so many trials that have ended."""
    found = {}
    for count in (0, 1, 30):
        folder = tmp_path_factory.mktemp(f"sweep{count}")
        sweep = Sweep(
            settings(storage_url("sqlite", folder), trials=30, study="a_name_without_a_break_" * 4), SPACE, folder
        )
        for number in range(count):
            trial = sweep.next_trial()
            value = trial.params["gamma"] * 100
            if number % 7 == 3:
                sweep.should_prune(number, 4, value)
                sweep.end(number, "PRUNED")
            else:
                sweep.note(number, RETURNS, [value - 1, value + 1])
                sweep.end(number, "COMPLETE", value)
        write_page(sweep)
        found[count] = folder / "sweep.html"
    return found


@pytest.fixture
def open_page(browser):
    """Opens a page in a tab that is offline; its `trouble` collects errors, messages and requests."""
    contexts = []

    def open_one(path, width=1400, theme="light"):
        size = {"width": width, "height": 900}
        context = browser.new_context(viewport=size, color_scheme=theme, offline=True)
        contexts.append(context)
        page = context.new_page()
        page.set_default_timeout(1000 * PATIENCE)
        trouble = []
        page.on("console", lambda message: trouble.append(message.text))
        page.on("pageerror", lambda error: trouble.append(str(error)))
        page.on("request", lambda request: trouble.append(request.url))
        page.goto(path.as_uri())
        trouble.remove(path.as_uri())
        return page, trouble

    yield open_one
    for context in contexts:
        context.close()


@pytest.mark.parametrize("theme", ["light", "dark"])
@pytest.mark.parametrize("width", [1400, 400])
@pytest.mark.parametrize("count", [0, 1, 30])
def test_the_page_opens_without_trouble_and_fits(open_page, pages, count, width, theme):
    page, trouble = open_page(pages[count], width, theme)
    assert page.evaluate("document.documentElement.scrollWidth") == width
    background = page.evaluate("getComputedStyle(document.body).backgroundColor")
    assert (background == "rgb(20, 23, 27)") == (theme == "dark")
    page.click("#theme")
    assert page.evaluate("getComputedStyle(document.body).backgroundColor") != background
    assert page.evaluate("document.querySelectorAll('canvas').length") == (count > 0)
    assert trouble == []


def test_what_is_drawn_are_the_trials(open_page, pages):
    page, _ = open_page(pages[30])
    data = json.loads(re.search(r'id="data">(.*?)</script>', pages[30].read_text())[1])
    assert page.evaluate("drawnHistory()") == [data[name] for name in ("number", "pruned", "value", "best")]
    assert page.locator(".parallel polyline").count() == sum(value is not None for value in data["value"])


def test_keys_move_along_the_history(open_page, pages):
    page, trouble = open_page(pages[30])
    page.focus("#history")
    page.keyboard.press("End")
    readout = page.locator(".readout")
    assert readout.inner_text().startswith("trial 29: ")
    page.keyboard.press("ArrowLeft")
    assert readout.inner_text().startswith("trial 28: ")
    page.keyboard.press("Home")
    for _ in range(3):
        page.keyboard.press("ArrowRight")
    assert readout.inner_text().startswith("trial 3: pruned at ")
    page.keyboard.press("Escape")
    assert readout.inner_text() == ""
    assert trouble == []
