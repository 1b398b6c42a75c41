"""Paths of the scripts and presets, in a checkout and in an installed wheel."""

from __future__ import annotations

from importlib.util import find_spec
from pathlib import Path

from fabric_ppo.config import Config, TorchConfig, script_file


def script_path(config_type: type[Config]) -> Path:
    """Return the path of the script that takes these flags."""
    spec = find_spec(script_file(config_type).removesuffix(".py"))
    assert spec is not None
    assert spec.origin is not None
    return Path(spec.origin)


def preset_path(preset: str) -> Path:
    """Return the YAML file of a preset."""
    # a wheel has the presets in the package, a checkout beside it
    installed = Path(__file__).parents[1] / "configs"
    folder = installed if installed.is_dir() else script_path(TorchConfig).with_name("configs")
    return folder / f"{preset}.yaml"
