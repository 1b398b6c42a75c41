"""What cannot be exported is one line, and leaves nothing behind."""

from __future__ import annotations

import contextlib
import sys

import pytest

from fabric_ppo.agents.policy_file import save_policy
from fabric_ppo.process.errors import ConfigError, EnvironmentFault
from fabric_ppo.tools import cli, export_files
from fabric_ppo.tools import export as export_module
from fabric_ppo.tools.export import export
from tests.fixtures.exported import agent_of, save, spec_of

FILES = {"onnx": "p.onnx", "torchscript": "p.pt"}
ENCODERS = """
import torch

class Own(torch.nn.Module):
    def __init__(self, space):
        super().__init__()
        self.num_features = 4
        self.layer = torch.nn.Linear(space.size, 4)
        self.calls = 0

    def forward(self, obs):
        return self.layer(obs)

class ByValues(Own):
    def forward(self, obs):
        if obs.sum() > 0:
            obs = -obs
        return self.layer(obs)

class Loop(Own):
    def forward(self, obs):
        while obs.abs().max() > 1:
            obs = obs / 2
        return self.layer(obs)

class ByBatch(Own):
    def forward(self, obs):
        return self.layer(obs) if len(obs) > 20 else self.layer(obs) * 2

class Numpy(Own):
    def forward(self, obs):
        return self.layer(torch.from_numpy(obs.numpy() * 2))

class Raises(Own):
    def forward(self, obs):
        if torch.compiler.is_compiling() or torch.jit.is_tracing():
            raise RuntimeError("not here")
        return self.layer(obs)

class Another(Own):
    def forward(self, obs):
        hidden = torch.compiler.is_compiling() or torch.jit.is_tracing()
        return self.layer(obs * 3) if hidden else self.layer(obs)
"""


@pytest.fixture
def own_encoders(tmp_path, monkeypatch):
    """The module `export_encoders`, and a function that saves a policy with one of its encoders."""
    monkeypatch.setattr(sys, "path", [str(tmp_path), *sys.path])
    (tmp_path / "export_encoders.py").write_text(ENCODERS)
    sys.modules.pop("export_encoders", None)

    def saved(name):
        folder = tmp_path / "run"
        folder.mkdir(exist_ok=True)
        save_policy(agent_of(spec_of("discrete"), encoder=f"export_encoders:{name}"), folder)
        return folder

    return saved


def files_of(folder):
    return sorted(str(each.relative_to(folder)) for each in folder.rglob("*") if "__pycache__" not in str(each))


@pytest.mark.parametrize("to", ["onnx", "torchscript"])
@pytest.mark.parametrize(
    ("name", "reason"),
    [
        ("ByValues", r"its control flow depends on the values of an observation, in .*export_encoders.py, line 16"),
        ("Loop", r"its control flow depends on the values of an observation, in .*export_encoders.py, line 22"),
        ("ByBatch", r".+"),
        ("Numpy", r".+"),
        ("Raises", r".*not here.*"),
    ],
)
def test_an_encoder_that_cannot_be_exported_is_named(name, reason, to, own_encoders, tmp_path, capsys):
    run_dir = own_encoders(name)
    before = files_of(tmp_path)
    out = str(tmp_path / FILES[to])
    assert cli.main(["export", str(run_dir), "--to", to, "--out", out, "--own-code", "--verify", "none"]) == 2
    printed = capsys.readouterr()
    assert printed.out == ""
    assert printed.err.count("\n") == 1
    import re

    pattern = rf"error: --to {to}: the encoder export_encoders:{name} cannot be exported: {reason}\n"
    assert re.fullmatch(pattern, printed.err), printed.err
    assert files_of(tmp_path) == before


@pytest.mark.parametrize("to", ["onnx", "torchscript"])
def test_what_differs_is_not_written(to, own_encoders, tmp_path):
    run_dir = own_encoders("Another")
    before = files_of(tmp_path)
    with pytest.raises(ConfigError, match=r"the encoder .*:Another is another when exported, .* params by [1-9]"):
        export(run_dir, to, tmp_path / FILES[to], own_code=True, verify="space")
    assert files_of(tmp_path) == before
    assert export(own_encoders("Own"), to, tmp_path / FILES[to], own_code=True).agreement.holds


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--to", "onnx", "--opset", "17"], "--opset 17: a whole number from 18 to 25 is expected"),
        (["--to", "onnx", "--opset", "26"], "--opset 26: a whole number from 18 to 25 is expected"),
        (["--to", "torchscript", "--opset", "18"], "--opset 18: only --to onnx has one"),
        (["--to", "onnx", "--verify-steps", "0"], "--verify-steps 0: a whole number from 1 up is expected; see .*"),
        (["--to", "onnx", "--out", "{}/none/p.onnx"], "--out .*/none/p.onnx: its folder does not exist; .*"),
        (["--to", "onnx", "--out", "{}"], "--out .*: is a folder; a file is expected"),
        (["--to", "onnx", "--out", "{}/p.pt"], "--out .*/p.pt: for --to onnx a name that ends with .onnx is expected"),
        (["--to", "torchscript"], "--out .*/p.onnx: for --to torchscript a name that ends with .pt or .pth or .*"),
        (["--to", "torchscript", "--out", "{}/p"], "--out .*/p: for --to torchscript a name that ends with .*"),
        (["--to", "keras"], "--to .*invalid choice: 'keras'.*"),
        (["--to", "onnx", "--code-dir", "{}/none"], "--code-dir .*: an existing folder is expected"),
        ([], "the following arguments are required: --to"),
    ],
)
def test_wrong_flags(words, message, tmp_path, capsys):
    run_dir = save(tmp_path, "discrete")
    before = files_of(tmp_path)
    given = [word.format(tmp_path) for word in words]
    out = [] if "--out" in words else ["--out", str(tmp_path / "p.onnx")]
    assert cli.main(["export", str(run_dir), *out, *given]) == 2
    import re

    assert re.fullmatch(f"error: {message}\n", capsys.readouterr().err)
    assert files_of(tmp_path) == before


def test_what_is_no_run(tmp_path):
    with pytest.raises(ConfigError, match="the folder of a run, or a checkpoint, is expected"):
        export(tmp_path, "torchscript", tmp_path / "p.pt")
    with pytest.raises(ConfigError, match="--to keras: onnx, torchscript is expected"):
        export(tmp_path, "keras", tmp_path / "p.pt")
    assert files_of(tmp_path) == []


@pytest.mark.parametrize("name", ["onnx", "onnxscript", "onnxruntime"])
def test_a_missing_package_is_named(name, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, name, None)
    with pytest.raises(ConfigError) as raised:
        export(tmp_path / "none", "onnx", tmp_path / "p.onnx")
    assert str(raised.value) == f"--to onnx: needs {name}: pip install onnx onnxruntime onnxscript"


def test_an_environment_that_cannot_be_made_has_a_way_out(tmp_path):
    from dataclasses import replace

    spec = replace(spec_of("discrete"), env_id="NoSuchGame-v0", make_args="")
    save_policy(agent_of(spec), tmp_path)
    with pytest.raises(ConfigError, match=r"NoSuchGame-v0: unknown.*; --verify space does without the environment"):
        export(tmp_path, "torchscript", tmp_path / "p.pt")
    assert files_of(tmp_path) == ["policy.safetensors"]
    assert export(tmp_path, "torchscript", tmp_path / "p.pt", verify="space").agreement.observations == 1000


def test_modules_of_ones_own_are_imported_on_request_only(tmp_path):
    with pytest.raises(ConfigError, match=r"needs tests.fixtures.export_envs: --own-code imports that; --verify space"):
        export(save(tmp_path, "discrete"), "torchscript", tmp_path / "p.pt")


def test_an_environment_that_fails_is_an_environments_fault(tmp_path, monkeypatch, capsys):
    from tests.fixtures.export_envs import Spaced

    def step(self, action):
        raise ValueError("boom")

    monkeypatch.setattr(Spaced, "step", step)
    words = ["export", str(save(tmp_path, "discrete")), "--to", "torchscript", "--out", str(tmp_path / "p.pt")]
    assert cli.main([*words, "--own-code"]) == 1
    assert "step 1: step raised ValueError: boom" in capsys.readouterr().err
    assert files_of(tmp_path) == ["policy.safetensors"]
    with pytest.raises(EnvironmentFault):
        export(tmp_path, "torchscript", tmp_path / "p.pt", own_code=True)


@pytest.mark.parametrize("failing", [1, 2])
def test_a_full_disk_leaves_nothing(failing, tmp_path, monkeypatch):
    calls, write = [], export_files.write_atomically

    def full(path, content):
        calls.append(path)
        if len(calls) == failing:
            raise OSError(28, "No space left on device")
        write(path, content)

    monkeypatch.setattr(export_files, "write_atomically", full)
    run_dir = save(tmp_path, "discrete")
    with pytest.raises(ConfigError, match=r"--out .*p.pt: cannot be written \(No space left on device\)"):
        export(run_dir, "torchscript", tmp_path / "p.pt", verify="none")
    assert files_of(tmp_path) == ["policy.safetensors"]


def test_an_interrupt_during_verification_closes_the_environment(tmp_path, monkeypatch):
    from tests.fixtures.export_envs import Spaced

    closed = []
    monkeypatch.setattr(Spaced, "close", lambda self: closed.append(True))

    def interrupted(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr(export_module, "compare", interrupted)
    with contextlib.suppress(KeyboardInterrupt):
        export(save(tmp_path, "discrete"), "torchscript", tmp_path / "p.pt", own_code=True)
    assert closed == [True]
    assert files_of(tmp_path) == ["policy.safetensors"]
