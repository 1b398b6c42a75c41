"""Paths of the scripts and presets, in a checkout and in an installed wheel."""

from __future__ import annotations

import difflib
import itertools
import os
import sys
from importlib.util import module_from_spec, spec_from_file_location
from pathlib import Path
from types import ModuleType

from fabric_ppo.config import Config, TorchConfig, script_file
from fabric_ppo.process.errors import ConfigError


def script_path(config_type: type[Config]) -> Path:
    """Return the path of the script that takes these flags: it lies beside this package."""
    # `import` would look in the user's folder first, which may have a file of this name
    return Path(__file__).parents[2] / script_file(config_type)


def load_script(config_type: type[Config]) -> ModuleType:
    """Return the script that takes these flags as a module, whatever `import` finds under its name."""
    path = script_path(config_type)
    imported = sys.modules.get(path.stem)
    if path.samefile(getattr(imported, "__file__", None) or os.devnull):
        assert imported is not None
        return imported
    # a name of its own, so that the user's file can be imported under the other one
    name = f"fabric_ppo_{path.stem}"
    if name not in sys.modules:
        spec = spec_from_file_location(name, path)
        assert spec is not None
        assert spec.loader is not None
        module = module_from_spec(spec)
        spec.loader.exec_module(module)
        sys.modules[name] = module
    return sys.modules[name]


def preset_path(preset: str) -> Path:
    """Return the YAML file of a preset."""
    return _preset_folder() / f"{preset}.yaml"


def preset_names() -> list[str]:
    """Return the names of all presets, sorted."""
    return sorted(path.stem for path in _preset_folder().glob("*.yaml"))


def describe_preset(preset: str) -> str:
    """Return a line about a preset: its name, and the comment that its file begins with."""
    lines = preset_path(preset).read_text(encoding="utf-8").splitlines()
    comment = itertools.takewhile(lambda line: line.startswith("#"), lines)
    return f"{preset:<24}{' '.join(line.lstrip('# ') for line in comment)}"


def config_path(name: str) -> str:
    """Return the file that `--config` names: a path, or a preset by its name.

    A file in the working directory comes before the preset of its name. What is no preset, and
    looks like a path, is returned as it is.

    Raises:
        ConfigError: it is neither a file nor a preset.
    """
    presets = preset_names()
    # a pipe, as of `<(...)`, is no regular file
    is_file = os.path.exists(name) and not os.path.isdir(name)
    if name in presets and not is_file:
        return str(preset_path(name))
    if os.path.exists(name) or os.path.basename(name) != name or os.path.splitext(name)[1]:
        return name
    nearest = difflib.get_close_matches(name.lower(), presets, n=3)
    hint = f"did you mean {', '.join(nearest)}?" if nearest else "fabric-ppo presets lists them"
    raise ConfigError(f"--config {name}: no such file, and no preset; {hint}")


def _preset_folder() -> Path:
    # a wheel has the presets in the package, a checkout beside it
    installed = Path(__file__).parents[1] / "configs"
    return installed if installed.is_dir() else script_path(TorchConfig).with_name("configs")
