"""Marks every test of this folder: `make test-fast` leaves them out."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from tests.fixtures.processes import PATIENCE


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        if Path(__file__).parent in item.path.parents:
            item.add_marker(pytest.mark.processes)


@pytest.fixture(scope="module")
def browser():
    """Chromium, for tests that look at pages; they are skipped where it is not installed."""
    from playwright.sync_api import sync_playwright

    chromium = shutil.which("chromium")
    if chromium is None:
        pytest.skip("needs Debian's chromium: apt install chromium")
    with sync_playwright() as playwright:
        started = playwright.chromium.launch(executable_path=chromium, args=["--no-sandbox"], timeout=1000 * PATIENCE)
        yield started
        started.close()
