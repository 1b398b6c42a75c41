"""What is to be installed: packages of their own names, the same as in pyproject.toml."""

from __future__ import annotations

import os
import re
import subprocess
import sys

import pytest

from fabric_ppo.process.extras import CORE, EXTRAS, install
from tests.fixtures.launching import ROOT
from tests.fixtures.processes import PATIENCE

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


@pytest.mark.parametrize("package", CORE)
def test_a_package_of_the_core_that_is_not_installed_is_named_in_a_line(package, tmp_path):
    """Whatever imports it, after the beginning of a script or of the command line."""
    module = "yaml" if package == "pyyaml" else package
    code = "from fabric_ppo.process.hold import begin_script; import sys; begin_script(); sys.modules[{0!r}] = None\n"
    for line in (f"import {module}", f"from {module}.part import name"):
        words = [sys.executable, "-c", code.format(module) + line]
        env = {**os.environ, "PYTHONPATH": str(ROOT)}
        done = subprocess.run(words, cwd=tmp_path, env=env, capture_output=True, text=True, timeout=PATIENCE)
        assert done.returncode == 1
        assert done.stderr == (
            f"error: {module} is not installed for {sys.executable}: in a clone, source .venv/bin/activate or pip "
            "install -r requirements.txt; fabric-ppo doctor lists what is missing\n"
        )


def test_a_missing_module_of_somebody_else_is_a_traceback(tmp_path):
    code = "from fabric_ppo.process.hold import begin_script; begin_script(); import torch_of_mine"
    env = {**os.environ, "PYTHONPATH": str(ROOT)}
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=tmp_path, env=env, capture_output=True, text=True, timeout=PATIENCE
    )
    assert done.stderr.startswith("Traceback")
    assert done.stderr.endswith("ModuleNotFoundError: No module named 'torch_of_mine'\n")
