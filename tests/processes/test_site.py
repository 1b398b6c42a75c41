"""The documentation site, built as `make docs` does: links and anchors lead somewhere, and nothing is fetched.

In Chromium, where there is one: no page is wider than a phone, and the search finds a flag, offline.
"""

from __future__ import annotations

import re
import subprocess
import sys
from html.parser import HTMLParser
from importlib.util import find_spec
from pathlib import Path
from urllib.parse import unquote, urlsplit

import pytest

from tests.fixtures.launching import ROOT, clean_environment
from tests.fixtures.processes import PATIENCE

LACKING = [name for name in ("mkdocs", "material", "latex2mathml", "pymdownx") if find_spec(name) is None]
pytestmark = pytest.mark.skipif(bool(LACKING), reason=f"no {', '.join(LACKING)}: make docs installs what it needs")


class Page(HTMLParser):
    """Anchors of a page, its links, and what it loads."""

    def __init__(self, path: Path) -> None:
        super().__init__()
        self.ids, self.links, self.loaded, self.text = {"__top"}, [], [], path.read_text()
        self.feed(self.text)

    def handle_starttag(self, tag, attrs):
        given = dict(attrs)
        self.ids |= {given[name] for name in ("id", "name") if given.get(name)}
        if tag == "a" and given.get("href") is not None:
            self.links.append(given["href"])
        elif tag == "link" and given.get("rel") in ("stylesheet", "icon"):
            self.loaded.append(given["href"])
        elif given.get("src"):
            self.loaded.append(given["src"])


@pytest.fixture(scope="module")
def site(tmp_path_factory):
    """The folder of the site, and its pages by their paths."""
    folder = tmp_path_factory.mktemp("site")
    done = subprocess.run(
        [sys.executable, "-m", "mkdocs", "build", "--strict", "--quiet", "--site-dir", folder],
        cwd=ROOT,
        env=clean_environment(NO_MKDOCS_2_WARNING="1", PYTHONPATH=str(ROOT)),
        capture_output=True,
        text=True,
        timeout=PATIENCE,
    )
    assert (done.returncode, done.stderr) == (0, "")
    # the page for servers has addresses from their root on
    return folder, {path: Page(path) for path in folder.rglob("*.html") if path.name != "404.html"}


def test_links_and_anchors_lead_somewhere(site):
    folder, pages = site
    wrong, count = [], 0
    for path, page in pages.items():
        for link in page.links + page.loaded:
            parts = urlsplit(link)
            if parts.scheme in ("http", "https") and link in page.links:
                continue
            target = (path.parent / unquote(parts.path)).resolve() if parts.path else path
            target = target / "index.html" if target.is_dir() else target
            count += 1
            anchor = unquote(parts.fragment)
            is_there = target.is_file() and (not anchor or target not in pages or anchor in pages[target].ids)
            if parts.scheme or not is_there or folder not in (target, *target.parents):
                wrong.append(f"{path.relative_to(folder)}: {link}")
    assert wrong == []
    assert count > 1000


def test_every_page_of_the_repository_is_in_it(site):
    folder, pages = site
    names = {path.relative_to(folder).with_suffix("").as_posix() for path in pages}
    assert {path.stem for path in (ROOT / "docs").glob("*.md")} <= names
    assert not (folder / "hooks").exists()


def test_formulas_are_mathml_and_no_markup_is_left(site):
    folder, pages = site
    text = pages[folder / "algorithm.html"].text
    written = (ROOT / "docs/algorithm.md").read_text()
    assert text.count('display="block"') == len(re.findall(r"^\$\$.*\$\$$", written, re.MULTILINE))
    for path, page in pages.items():
        body = re.sub(r"<(pre|code|script)\b.*?</\1>", "", page.text, flags=re.DOTALL)
        assert re.findall(r"arithmatex|\$\$|\\\(|^Code: |\*\*|^\|.*\|$|^- ", body, re.MULTILINE) == [], path


def test_in_a_browser(site, browser):
    folder, pages = site
    phone = browser.new_context(viewport={"width": 400, "height": 800}, offline=True).new_page()
    phone.set_default_timeout(1000 * PATIENCE)
    trouble = []
    phone.on("pageerror", lambda error: trouble.append(str(error)))
    phone.on("request", lambda request: None if request.url.startswith("file:") else trouble.append(request.url))
    for path in pages:
        phone.goto(path.as_uri())
        if phone.evaluate("document.documentElement.scrollWidth > document.documentElement.clientWidth"):
            trouble.append(f"{path.name} is wider than the window")
    assert trouble == []
    desk = browser.new_context(viewport={"width": 1280, "height": 900}, offline=True).new_page()
    desk.set_default_timeout(1000 * PATIENCE)
    for words in ("--desired-kl", "desired_kl"):
        desk.goto((folder / "start.html").as_uri())
        desk.locator("[data-md-component=search-query]").click()
        desk.locator("[data-md-component=search-query]").press_sequentially(words)
        found = desk.locator("a[href*='flags.html'][href*='#algorithm']")
        found.first.wait_for(state="attached")
