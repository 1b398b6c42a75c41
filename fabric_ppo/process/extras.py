"""Packages that parts of this program need besides, and how they are installed.

They are named themselves, not as extras of this package: that is not on PyPI, and its name there
may be anybody's.
"""

from __future__ import annotations

EXTRAS = {
    "atari": ("ale-py", "opencv-python-headless"),
    "envpool": ("envpool",),
    "hub": ("huggingface_hub",),
    "minigrid": ("minigrid",),
    "mlflow": ("alembic", "mlflow-skinny", "sqlalchemy"),
    "mujoco": ("gymnasium[mujoco]",),
    "native": ("ziglang",),
    "onnx": ("onnx", "onnxruntime", "onnxscript"),
    "plot": ("matplotlib",),
    "trackio": ("trackio",),
    "wandb": ("wandb",),
}
"""Extra of `pyproject.toml` -> the packages in it; a test compares them."""


def install(extra: str) -> str:
    """Return the command that installs what a part needs.

    >>> print(install("onnx"))
    pip install onnx onnxruntime onnxscript
    """
    names = [f'"{name}"' if "[" in name else name for name in EXTRAS[extra]]
    return f"pip install {' '.join(names)}"
