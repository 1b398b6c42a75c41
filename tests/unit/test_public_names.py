"""The package's public names: shown by completion, imported when they are asked for, few."""

from __future__ import annotations

import doctest
import inspect
import re
import shutil
import subprocess
import sys

import pytest

import fabric_ppo
from tests.fixtures.launching import ROOT
from tests.fixtures.old_runs import VERSIONS
from tests.fixtures.processes import PATIENCE

LAZY = """
import rlcompleter, sys
import fabric_ppo
names = [name for name in dir(fabric_ppo) if not name.startswith("_")]
assert "torch" not in sys.modules and "gymnasium" not in sys.modules
print(*names)
fabric_ppo.ConfigError, fabric_ppo.Config
assert "torch" not in sys.modules
completer = rlcompleter.Completer({"fabric_ppo": fabric_ppo})
print(completer.complete("fabric_ppo.load_a", 0), completer.complete("fabric_ppo.RunR", 0))
"""


def test_completion_shows_all_names_and_imports_none():
    words = [sys.executable, "-c", LAZY]
    done = subprocess.run(words, cwd=ROOT, capture_output=True, text=True, timeout=PATIENCE)
    assert done.returncode == 0, done.stderr
    names, completed = done.stdout.splitlines()
    assert {name for name in fabric_ppo.__all__ if name != "__version__"} <= set(names.split())
    assert completed.startswith("fabric_ppo.load_agent")
    assert "fabric_ppo.RunResult" in completed


def test_every_public_name_is_there():
    for name in fabric_ppo.__all__:
        found = getattr(fabric_ppo, name)
        assert name == "__version__" or found.__name__ == name
        assert name in dir(fabric_ppo)
    namespace: dict[str, object] = {}
    exec("from fabric_ppo import *", namespace)
    assert set(fabric_ppo.__all__) <= set(namespace)


@pytest.mark.parametrize("name", [each for each in fabric_ppo.__all__ if each != "__version__"])
def test_every_public_name_has_an_example_that_works(name, tmp_path, monkeypatch):
    """In its docstring, in a folder where `RUN_DIR` is a run of CartPole."""
    found = getattr(fabric_ppo, name)
    assert found.__doc__
    assert "Example:\n" in found.__doc__
    shutil.copytree(VERSIONS[0] / "torch", tmp_path / "RUN_DIR")
    monkeypatch.chdir(tmp_path)
    example = doctest.DocTestParser().get_doctest(found.__doc__, {}, name, None, None)
    assert example.examples
    printed: list[str] = []
    assert doctest.DocTestRunner().run(example, out=printed.append).failed == 0, "".join(printed)


@pytest.mark.parametrize("name", ["evaluate", "export", "load_agent", "load_run", "train"])
def test_every_public_function_says_what_it_takes_and_raises(name):
    doc, function = getattr(fabric_ppo, name).__doc__, getattr(fabric_ppo, name)
    for argument in inspect.signature(function).parameters:
        assert re.search(rf"^ {{8}}(?:\w+, )*{argument}(?:, \w+)*: ", doc, re.MULTILINE), argument
    assert "Raises:\n        ConfigError" in doc


def test_the_mark_of_types_is_shipped():
    assert (ROOT / "fabric_ppo" / "py.typed").is_file()
    assert '"fabric_ppo" = ["py.typed"]' in (ROOT / "pyproject.toml").read_text()
