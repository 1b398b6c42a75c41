"""The package's public names: shown by completion, imported when they are asked for, few."""

from __future__ import annotations

import subprocess
import sys

import fabric_ppo
from tests.fixtures.launching import ROOT
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


def test_the_mark_of_types_is_shipped():
    assert (ROOT / "fabric_ppo" / "py.typed").is_file()
    assert '"fabric_ppo" = ["py.typed"]' in (ROOT / "pyproject.toml").read_text()
