"""A policy as TorchScript: the file's bytes, and its run by `torch.jit`."""

from __future__ import annotations

import io
import json
import zipfile
from collections.abc import Mapping
from typing import Any

import torch
from numpy.typing import NDArray
from torch import Tensor

from fabric_ppo.tools.export_interface import NamedPolicy

METADATA_FILE = "metadata.json"
"""Extra file that holds the metadata; `torch.jit.load` reads it into `_extra_files`."""


def to_torchscript(module: NamedPolicy, example: Mapping[str, Tensor], metadata: Mapping[str, str]) -> bytes:
    """Return the TorchScript file of a policy.

    Args:
        module: from a dict of inputs to a dict of outputs.
        example: inputs, `[B, ...]` with B of at least 2.
        metadata: for `METADATA_FILE` in the file.

    Raises:
        Exception: of many kinds, where the module cannot be traced.
    """
    batch = torch.export.Dim("batch")
    # a trace follows one way through a module: this one raises where values decide on the way
    torch.export.export(module, (dict(example),), dynamic_shapes=({name: {0: batch} for name in example},))
    with torch.no_grad():
        # outputs in a dict are not strict
        traced = torch.jit.trace(module, (dict(example),), check_trace=False, strict=False, _store_inputs=False)
    buffer = io.BytesIO()
    torch.jit.save(traced, buffer, _extra_files={METADATA_FILE: json.dumps(dict(metadata), sort_keys=True)})
    return _without_source(buffer.getvalue())


def _without_source(content: bytes) -> bytes:
    """Return a TorchScript file without names of source files, which have paths of this machine."""
    buffer = io.BytesIO()
    with zipfile.ZipFile(io.BytesIO(content)) as old, zipfile.ZipFile(buffer, "w") as new:
        for info in old.infolist():
            if not info.filename.endswith(".debug_pkl"):
                new.writestr(info, old.read(info))
    return buffer.getvalue()


class TorchScriptRunner:
    """A function from inputs to outputs, by name, that runs a TorchScript file."""

    def __init__(self, content: bytes) -> None:
        """Load the file's bytes."""
        self._module = torch.jit.load(io.BytesIO(content))

    def __call__(self, inputs: Mapping[str, NDArray[Any]]) -> dict[str, NDArray[Any]]:
        """Compute all outputs."""
        with torch.no_grad():
            out = self._module({name: torch.from_numpy(each) for name, each in inputs.items()})
        return {name: each.numpy() for name, each in out.items()}
