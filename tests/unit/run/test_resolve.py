"""The machine that a run needs: CUDA devices, a compiler, a precision that learns."""

from __future__ import annotations

from pathlib import Path

import pytest

from fabric_ppo.config import Config, TorchConfig
from fabric_ppo.process.errors import ConfigError
from fabric_ppo.run.resolve import resolve
from fabric_ppo.tools import cli
from fabric_ppo.tools.flags import parse_args, parse_flags
from tests.fixtures.flags import refusal

pytestmark = pytest.mark.usefixtures("no_launcher")


def test_cuda_is_never_a_cpu_run(monkeypatch):
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    assert "--cuda" in refusal(["--cuda"], TorchConfig)
    monkeypatch.setattr("torch.cuda.is_available", lambda: True)
    monkeypatch.setattr("torch.cuda.device_count", lambda: 2)
    config = parse_flags(TorchConfig, ["--cuda"])
    assert resolve(config, 4, ranks_on_host=2).cuda
    with pytest.raises(ConfigError, match="--cuda: 3 CUDA devices are needed here, 2 found"):
        resolve(config, 3, ranks_on_host=3)


@pytest.mark.parametrize("precision", ["16", "16-mixed", "16-true", "bf16-true", "transformer-engine"])
def test_a_precision_with_which_nothing_is_learned_is_refused(precision, capsys, monkeypatch):
    assert cli.main(["train", "fabric", "--devices", "2", "--precision", precision]) == 2
    monkeypatch.setenv("LT_PRECISION", precision)
    with pytest.raises(SystemExit):
        parse_args(Config, [])
    lines = capsys.readouterr().err.splitlines()
    assert lines == [f"error: --precision {precision}: 32-true, 64-true or bf16-mixed is expected"] * 2


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
