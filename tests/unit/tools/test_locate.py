"""Presets by their names: what `--config` takes, and what `fabric-ppo presets` lists."""

from __future__ import annotations

import importlib
import os
import sys
import threading

import pytest
import yaml

import train_torch
from fabric_ppo.config import SCRIPT_CONFIGS, TorchConfig, script_file
from fabric_ppo.process.errors import ConfigError
from fabric_ppo.tools import cli
from fabric_ppo.tools.flags import parse_flags
from fabric_ppo.tools.locate import config_path, describe_preset, load_script, preset_names, preset_path, script_path
from tests.fixtures.launching import ROOT

PRESETS = sorted(path.stem for path in (ROOT / "configs").glob("*.yaml"))


def test_every_preset_is_listed_with_its_environment(capsys):
    assert preset_names() == PRESETS
    assert cli.main(["presets"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert [line.split()[0] for line in lines] == PRESETS
    for name, line in zip(PRESETS, lines, strict=True):
        values = yaml.safe_load((ROOT / "configs" / f"{name}.yaml").read_text())
        assert line.split()[1] == values["env_id"].rpartition(":")[2]
        assert line == describe_preset(name)


def test_a_preset_by_its_name_gives_the_flags_of_its_file(tmp_path, monkeypatch):
    """From a folder with none of the files."""
    monkeypatch.chdir(tmp_path)
    by_name = parse_flags(TorchConfig, ["--config", "cartpole", "--seed", "7"])
    by_path = parse_flags(TorchConfig, [f"--config={ROOT}/configs/cartpole.yaml", "--seed", "7"])
    assert by_name.to_dict() == by_path.to_dict()
    assert by_name.activation_function == "tanh"


def test_a_file_comes_before_the_preset_and_a_folder_does_not(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "cartpole").write_text("gamma: 0.5\n")
    (tmp_path / "pendulum").mkdir()
    assert parse_flags(TorchConfig, ["--config", "cartpole"]).gamma == 0.5
    assert config_path("pendulum") == str(preset_path("pendulum"))


def test_a_pipe_is_read_like_a_file(tmp_path):
    os.mkfifo(tmp_path / "pipe")
    thread = threading.Thread(target=(tmp_path / "pipe").write_text, args=("gamma: 0.5\n",))
    thread.start()
    assert parse_flags(TorchConfig, ["--config", str(tmp_path / "pipe")]).gamma == 0.5
    thread.join()


@pytest.mark.parametrize(
    ("name", "hint"),
    [
        ("lunarlander-fst", "did you mean lunarlander-fast, lunarlander, lunarlander-continuous?"),
        ("CartPole", "did you mean cartpole?"),
        ("zzzz", "fabric-ppo presets lists them"),
        ("z" * 300, "fabric-ppo presets lists them"),
    ],
)
def test_an_unknown_name_lists_the_nearest(name, hint):
    with pytest.raises(ConfigError) as caught:
        parse_flags(TorchConfig, ["--config", name])
    assert str(caught.value) == f"--config {name}: no such file, and no preset; {hint}"


@pytest.mark.parametrize("path", ["nothing.yaml", "./cartpole", "configs/none", "/nowhere", "."])
def test_what_looks_like_a_path_is_one(path, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ConfigError, match="cannot be read"):
        parse_flags(TorchConfig, ["--config", path])


@pytest.mark.parametrize("kind", SCRIPT_CONFIGS.values())
def test_scripts_are_found_by_their_place_and_not_by_their_name(kind, tmp_path, monkeypatch):
    """A file of the user's with the same name comes first in `sys.path`, or is imported already."""
    name = script_file(kind).removesuffix(".py")
    (tmp_path / f"{name}.py").write_text("main = 'own'\n")
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delitem(sys.modules, name, raising=False)
    assert script_path(kind) == ROOT / f"{name}.py"
    for _ in range(2):
        assert load_script(kind).main.__code__.co_filename == str(ROOT / f"{name}.py")
        assert importlib.import_module(name).main == "own"
    monkeypatch.delitem(sys.modules, f"fabric_ppo_{name}")


def test_a_script_that_has_been_imported_is_the_one():
    assert load_script(TorchConfig) is train_torch
