"""Packages that this program needs, those of some parts of it, and how they are installed.

The latter are named themselves, not as extras of this package: that is not on PyPI, and its name there
may be anybody's.
"""

from __future__ import annotations

import sys
from types import TracebackType

CORE = {
    "click": "",
    "gymnasium": ">=1.1",
    "jinja2": ">=3.1",
    "lightning": ">=2.5,!=2.6.2,!=2.6.3",
    "moviepy": ">=2.0",
    "numpy": ">=1.26",
    "pyyaml": "",
    "rich": "",
    "safetensors": "",
    "tensorboard": "",
    "torch": ">=2.6",
    "tyro": ">=1.0,<2",
}
"""Package that every part needs -> its versions, as in `pyproject.toml`; a test compares them."""
EXTRAS = {
    "atari": ("ale-py", "opencv-python-headless"),
    "envpool": ("envpool",),
    "hub": ("huggingface_hub",),
    "jax": ("jax",),
    "minari": ("minari[hdf5]",),
    "minigrid": ("minigrid",),
    "mlflow": ("alembic", "mlflow-skinny", "sqlalchemy"),
    "mujoco": ("gymnasium[mujoco]",),
    "native": ("ziglang",),
    "onnx": ("onnx", "onnxruntime", "onnxscript"),
    "pettingzoo": ("pettingzoo",),
    "plot": ("matplotlib",),
    "postgresql": ("psycopg[binary]",),
    "sweep": ("optuna",),
    "trackio": ("trackio",),
    "wandb": ("wandb",),
}
"""Extra of `pyproject.toml` -> the packages in it; a test compares them."""


CORE_MODULES = {"pyyaml": "yaml"}
"""Package of the core -> module to import, where it has another name."""


def name_missing_packages() -> None:
    """Have this process end with a line, not a traceback, where a package of the core is not installed."""
    sys.excepthook = _print_missing


def _print_missing(kind: type[BaseException], error: BaseException, trace: TracebackType | None) -> None:
    if line := missing_package(error):
        sys.stderr.write(f"error: {line}\n")
    else:
        sys.__excepthook__(kind, error, trace)


def missing_package(error: BaseException) -> str:
    """Return the line about a package of the core that an import did not find; empty for any other error."""
    module = (error.name or "").partition(".")[0] if isinstance(error, ModuleNotFoundError) else ""
    if module not in {CORE_MODULES.get(package, package) for package in CORE}:
        return ""
    places = "in a clone, source .venv/bin/activate or pip install -r requirements.txt"
    return f"{module} is not installed for {sys.executable}: {places}; fabric-ppo doctor lists what is missing"


def own_version() -> str:
    """Return the version of this package."""
    # the package itself is above this folder, and lists its public names; it is imported by now
    return str(sys.modules["fabric_ppo"].__version__)


def install(extra: str) -> str:
    """Return the command that installs what a part needs.

    >>> print(install("onnx"))
    pip install onnx onnxruntime onnxscript
    """
    return pip_install(*EXTRAS[extra])


def pip_install(*names: str) -> str:
    """Return the command that installs packages, each given by its name and perhaps its versions.

    >>> print(pip_install("torch>=2.6", "rich"))
    pip install "torch>=2.6" rich
    """
    return " ".join(["pip install", *(f'"{name}"' if set(name) & set("[<>=!") else name for name in names)])
