"""The machine that a run needs: CUDA devices, a compiler, paths that are text."""

from __future__ import annotations

from pathlib import Path

import pytest

from fabric_ppo.config import Config, TorchConfig
from fabric_ppo.process.errors import ConfigError
from fabric_ppo.run.resolve import resolve
from fabric_ppo.tools.flags import parse_flags
from tests.fixtures.flags import refusal

pytestmark = pytest.mark.usefixtures("no_launcher")


def test_cuda_is_never_a_cpu_run(monkeypatch):
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    assert "--cuda" in refusal(["--cuda"], TorchConfig)
    monkeypatch.setattr("torch.cuda.is_available", lambda: True)
    monkeypatch.setattr("torch.cuda.device_count", lambda: 2)
    config = parse_flags(TorchConfig, ["--cuda"])
    assert resolve(config, 4, ranks_on_host=2).cuda
    assert resolve(config, 3, ranks_on_host=3).cuda  # on one host they share its GPUs
    with pytest.raises(ConfigError, match="--cuda: 3 CUDA devices are needed here, 2 found"):
        resolve(config, 6, ranks_on_host=3)


@pytest.mark.parametrize("name", ["run_dir", "log_dir", "init_from"])
@pytest.mark.parametrize("path", ["caf\udce9", "folder/\udcff/run", "nul\0"])
def test_a_path_that_is_no_text_is_refused(name, path, tmp_path, monkeypatch):
    """TensorBoard and others encode paths as UTF-8, and would fail with a folder half made."""
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ConfigError, match=f"^--{name.replace('_', '-')} .* is expected") as caught:
        resolve(Config(**{name: path}))
    assert str(caught.value).isprintable()
    assert list(tmp_path.iterdir()) == []


def test_so_is_a_working_directory_that_is_no_text(tmp_path, monkeypatch):
    (tmp_path / "caf\udce9").mkdir()
    monkeypatch.chdir(tmp_path / "caf\udce9")
    with pytest.raises(ConfigError, match=r"^--log-dir .*caf"):
        resolve(Config())


def test_text_of_all_languages_is_a_path(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert resolve(Config(run_dir="Gr\u00f6\u00dfe/\u4e2d\U0001f600 run")).run_dir is not None


def test_compiling_needs_a_compiler(monkeypatch, tmp_path):
    """Reported when the Config is resolved, in one line, before anything starts."""
    monkeypatch.setenv("CXX", "no-such-compiler")
    with pytest.raises(ConfigError, match=r"^--compile: .*no-such-compiler is not found") as caught:
        resolve(Config(compile=True))
    assert "\n" not in str(caught.value)
    compiler = tmp_path / "a-compiler"
    compiler.touch(mode=0o755)
    monkeypatch.setenv("CXX", str(compiler))
    monkeypatch.setattr("sysconfig.get_path", lambda _: str(tmp_path))
    with pytest.raises(ConfigError, match=r"^--compile: Python's headers are needed"):
        resolve(Config(compile=True))
    (tmp_path / "Python.h").touch()
    assert resolve(Config(compile=True)).compile


def test_paths_are_absolute_before_the_users_code_is_imported(tmp_path, monkeypatch):
    """A module may change the working directory; it stays where it wants to be."""
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "walks.py").write_text("import os\nos.chdir('elsewhere')\n\ndef same(env):\n    return env\n")
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    config = resolve(Config(env_wrapper="walks:same", run_dir="run", log_dir="logs", init_from="first"))
    assert Path.cwd() == tmp_path / "elsewhere"
    paths = config.run_dir, config.log_dir, config.init_from
    assert paths == tuple(str(tmp_path / name) for name in ("run", "logs", "first"))
