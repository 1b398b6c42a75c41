"""Functions that are compiled at their first use: how they are found, kept, and done without."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest
import torch

from fabric_ppo.fast import kernels as file
from fabric_ppo.fast.kernels import kernels, origin
from fabric_ppo.fast.loss_module import PPOLoss
from fabric_ppo.ppo.loss import minibatch_loss
from fabric_ppo.process.console import without_notes
from fabric_ppo.process.machine import c_compiler
from tests.fixtures.agents import build_agent
from tests.fixtures.launching import ROOT
from tests.fixtures.rows import make_rows
from tests.fixtures.spaces import ACTIONS
from tests.fixtures.updates import CONFIG, coefs_of


@pytest.fixture
def cache(tmp_path, monkeypatch):
    """An empty folder for what is compiled, in a process that has loaded nothing yet."""
    folder = tmp_path / "not there yet"
    monkeypatch.setenv("FABRIC_PPO_CACHE", str(folder))
    kernels.cache_clear()
    yield folder
    kernels.cache_clear()


def load_again():
    """As the next process does."""
    kernels.cache_clear()
    return kernels(torch.float32)


def test_they_are_compiled_once(cache, monkeypatch, capsys):
    assert kernels(torch.float32) is not None
    assert "compiled kernels.c (float) in" in capsys.readouterr().err
    (kept,) = cache.iterdir()
    assert origin(load_again()) in kept.name
    monkeypatch.setattr(subprocess, "run", None)
    assert load_again() is not None
    assert capsys.readouterr().err == ""


@pytest.mark.parametrize("what", ["source", "compiler", "processor"])
def test_they_are_compiled_anew_for_another(what, cache, tmp_path, monkeypatch):
    name, compiler = origin(kernels(torch.float32)), c_compiler()
    if what == "source":
        monkeypatch.setattr(file, "_SOURCE", tmp_path / "kernels.c")
        file._SOURCE.write_text((ROOT / "fabric_ppo/fast/kernels.c").read_text() + "\n/* edited */\n")
    elif what == "compiler":
        other = tmp_path / "other cc"
        other.symlink_to(compiler[0])
        monkeypatch.setenv("CC", f"'{other}'")
    else:
        monkeypatch.setattr(file, "_processor", lambda: "another")
    again = origin(load_again())
    assert len(list(cache.iterdir())) == 2
    assert (again == name) == (what == "processor")  # which the machine's name tells already


@pytest.mark.parametrize("has_home", [False, True])
def test_without_a_folder_to_keep_them_in_they_are_compiled_each_time(has_home, cache, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    if has_home:
        (tmp_path / "taken").write_text("")
        monkeypatch.setenv("FABRIC_PPO_CACHE", str(tmp_path / "taken"))
    else:
        monkeypatch.delenv("FABRIC_PPO_CACHE")
        monkeypatch.delenv("XDG_CACHE_HOME", raising=False)
        monkeypatch.setattr(os.path, "expanduser", lambda path: path)
    before = sorted(tmp_path.iterdir())
    for _ in range(2):
        assert load_again().draw
        assert "but not kept for the next run ([Errno" in capsys.readouterr().err
    assert sorted(tmp_path.iterdir()) == before


def test_quiet_says_nothing_of_it(cache, capsys):
    with without_notes():
        assert kernels(torch.float32) is not None
    assert capsys.readouterr().err == ""


@pytest.mark.parametrize("content", [b"", b"\x7fELF\x02\x01\x01" + bytes(57)], ids=["empty", "cut off"])
def test_a_file_that_is_not_whole_is_replaced(content, cache, capsys):
    cache.mkdir()
    path = file._path(c_compiler(), torch.float32)
    path.write_bytes(content)
    assert kernels(torch.float32) is not None
    assert "compiled kernels.c" in capsys.readouterr().err
    assert path.stat().st_size > 5000


def no_compiler(monkeypatch, tmp_path):
    monkeypatch.delenv("CC", raising=False)
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.setitem(sys.modules, "ziglang", None)
    return "no C compiler was found, so training takes longer: cc of the system helps, or pip install ziglang"


def not_a_compiler(monkeypatch, tmp_path):
    monkeypatch.setenv("CC", str(tmp_path / "mycc"))
    return "mycc'; CC names another compiler"


def a_compiler_that_fails(monkeypatch, tmp_path):
    script = tmp_path / "failing"
    script.write_text("#!/bin/sh\necho 'kernels.c:1:1: error: no such thing' >&2\necho 'ended.' >&2\nexit 1\n")
    script.chmod(0o755)
    monkeypatch.setenv("CC", str(script))
    return "kernels.c could not be compiled, so training takes longer: kernels.c:1:1: error: no such thing"


def an_old_compiler(monkeypatch, tmp_path):
    monkeypatch.setattr(file, "_FLAGS", (*file._FLAGS, "-fno-such-flag"))
    return "no-such-flag"


@pytest.mark.parametrize("how", [no_compiler, not_a_compiler, a_compiler_that_fails, an_old_compiler])
def test_without_them_autograd_trains(how, cache, tmp_path, monkeypatch, capsys):
    """A line says why, once; the loss is the plain one to the last bit."""
    line = how(monkeypatch, tmp_path)
    agent = build_agent(ACTIONS["discrete"], dtype=torch.float32)
    rows = make_rows(agent, 16)
    rows = type(rows)(*(each.float() if each.dtype == torch.float64 else each for each in rows[:-1]))
    module = PPOLoss(agent, CONFIG)
    for _ in range(2):
        got = module(rows, coefs_of(CONFIG))
    want = minibatch_loss(module.weights, rows, coefs_of(CONFIG))
    assert all(torch.equal(a, b) for a, b in zip(got[:4], want[:4], strict=True))
    (said,) = capsys.readouterr().err.splitlines()
    assert line in said
    assert not list(cache.glob("*")) or not cache.is_dir()


def test_ziglang_is_a_compiler(cache, tmp_path, monkeypatch):
    """The command for it; whether it compiles is tested where it is installed."""
    monkeypatch.delenv("CC", raising=False)
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.setattr("importlib.util.find_spec", lambda name: name == "ziglang" or None)
    assert c_compiler() == [sys.executable, "-m", "ziglang", "cc"]


@pytest.mark.processes
def test_ranks_may_compile_at_the_same_time(tmp_path):
    env = os.environ | {"FABRIC_PPO_CACHE": str(tmp_path), "PYTHONPATH": str(ROOT)}
    code = "import torch; from fabric_ppo.fast.kernels import kernels; assert kernels(torch.float32).draw"
    ranks = [subprocess.Popen([sys.executable, "-c", code], env=env) for _ in range(3)]
    assert [each.wait() for each in ranks] == [0, 0, 0]
    assert len(list(tmp_path.iterdir())) == 1
