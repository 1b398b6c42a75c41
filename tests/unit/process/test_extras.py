"""What is to be installed: packages of their own names, the same as in pyproject.toml."""

from __future__ import annotations

import re

import pytest

from fabric_ppo.process.extras import CORE, EXTRAS, install
from tests.fixtures.launching import ROOT

DECLARED = re.findall(
    r"^(\w+) = \[(.*)\]",
    (ROOT / "pyproject.toml").read_text().partition("[project.optional-dependencies]")[2].partition("\n[")[0],
    re.MULTILINE,
)


def test_the_packages_are_those_of_pyproject():
    declared = {extra: re.findall(r'"([\w.\-]+(?:\[\w+\])?)', text) for extra, text in DECLARED}
    assert len(declared) >= 11
    assert {extra: list(names) for extra, names in EXTRAS.items()} == declared


def test_the_core_is_that_of_pyproject():
    (block,) = re.findall(
        r"^dependencies = \[\n(.*?)^\]", (ROOT / "pyproject.toml").read_text(), re.MULTILINE | re.DOTALL
    )
    declared = re.findall(r'^    "([\w-]+)(?:\[\w+\])?([^"]*)"', block, re.MULTILINE)
    assert len(declared) == block.count("\n")
    assert dict(declared) == CORE


def test_the_command_is_one_for_a_shell():
    assert install("mujoco") == 'pip install "gymnasium[mujoco]"'
    assert install("mlflow") == "pip install alembic mlflow-skinny sqlalchemy"


FILES = [ROOT / "README.md", *(ROOT / "docs").glob("*.md"), *(ROOT / "fabric_ppo").rglob("*.*")]


@pytest.mark.parametrize("path", [each for each in FILES if each.suffix in (".md", ".py", ".html")], ids=str)
def test_nothing_asks_for_this_package_on_pypi(path):
    """It is not there."""
    assert not re.search(r"pip install [^\n`]*fabric[-_]ppo", path.read_text())
