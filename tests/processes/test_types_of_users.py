"""Type checkers see the package's types: mypy's process checks a user's program with --strict."""

from __future__ import annotations

import subprocess
import sys

from tests.fixtures.launching import ROOT
from tests.fixtures.processes import PATIENCE

AS_INSTALLED = """
[mypy]
strict = true
mypy_path = {root}
[mypy-fabric_ppo.*,train_torch]
follow_imports = silent
"""
"""Mypy looks for the checkout, which it does not find where it is installed as editable, and reports nothing of it."""


def check(path):
    path.with_name("mypy.ini").write_text(AS_INSTALLED.format(root=ROOT))
    words = [sys.executable, "-m", "mypy", path.name]
    return subprocess.run(words, cwd=path.parent, capture_output=True, text=True, timeout=PATIENCE)


def test_a_program_that_uses_all_of_the_api_is_right(tmp_path):
    """And a wrong one is found: the names are no `Any`."""
    program = (ROOT / "tests/fixtures/user_program.py").read_text()
    (tmp_path / "right.py").write_text(program)
    done = check(tmp_path / "right.py")
    assert done.returncode == 0, done.stdout
    wrong = 'fabric_ppo.train(3)\nfabric_ppo.Config(num_envs="a")\nfabric_ppo.load_agent("a").nothing\n'
    (tmp_path / "wrong.py").write_text(f"import fabric_ppo\n{wrong}fabric_ppo.nothing\n")
    done = check(tmp_path / "wrong.py")
    assert [line.split(":")[1] for line in done.stdout.splitlines() if ": error:" in line] == ["2", "3", "4", "5"]


def test_the_program_uses_every_public_name():
    import fabric_ppo

    text = (ROOT / "tests/fixtures/user_program.py").read_text()
    assert not [name for name in fabric_ppo.__all__ if name not in text]
