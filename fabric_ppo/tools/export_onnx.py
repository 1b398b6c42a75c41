"""A policy as ONNX: the file's bytes, and its run by onnxruntime."""

from __future__ import annotations

import importlib
from collections.abc import Mapping
from typing import Any

import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from fabric_ppo.process.errors import ConfigError
from fabric_ppo.process.extras import install
from fabric_ppo.tools.export_interface import Interface, NamedPolicy

LEAST_OPSET, MOST_OPSET = 18, 25
"""Opsets that can be had: PyTorch's exporter writes 18, and onnxscript raises that."""
_PACKAGES = ("onnx", "onnxscript", "onnxruntime")


def require_packages() -> None:
    """Raise a ConfigError if a package is missing that an export to ONNX needs."""
    for name in _PACKAGES:
        try:
            importlib.import_module(name)
        except ImportError:
            raise ConfigError(f"--to onnx: needs {name}: {install('onnx')}") from None


class _Positional(nn.Module):
    """A module whose inputs and outputs have an order, which names in ONNX need."""

    def __init__(self, module: NamedPolicy, interface: Interface) -> None:
        super().__init__()
        self.policy = module
        self._inputs = [port.name for port in interface.inputs]
        self._outputs = [port.name for port in interface.outputs]

    def forward(self, *inputs: Tensor) -> tuple[Tensor, ...]:
        """Compute the outputs in order."""
        out = self.policy(dict(zip(self._inputs, inputs, strict=True)))
        return tuple(out[name] for name in self._outputs)


def to_onnx(
    module: NamedPolicy,
    interface: Interface,
    example: Mapping[str, Tensor],
    metadata: Mapping[str, str],
    opset: int,
) -> bytes:
    """Return the ONNX file of a policy; the same policy gives the same bytes.

    Args:
        module, interface: the policy's.
        example: inputs, `[B, ...]` with B of at least 2.
        metadata: for the file's `metadata_props`.
        opset: version of ONNX's operators.

    Raises:
        Exception: of many kinds, where the module has what ONNX cannot express.
    """
    batch, args = torch.export.Dim("batch"), tuple(example[port.name] for port in interface.inputs)
    shapes = (tuple({0: batch} for _ in args),)
    # not left to the exporter of ONNX, which where this raises tries again and makes less general ones
    graph = torch.export.export(_Positional(module, interface).eval(), args, dynamic_shapes=shapes)
    program = torch.onnx.export(
        graph,
        args,
        input_names=[port.name for port in interface.inputs],
        output_names=[port.name for port in interface.outputs],
        dynamic_shapes=shapes,
        opset_version=opset,
        dynamo=True,
        verbose=False,
    )
    assert program is not None
    model: Any = program.model_proto
    found = next(each.version for each in model.opset_import if each.domain == "")
    if found != opset:
        raise ValueError(f"opset {opset} cannot be had, but {found}")
    # they hold lines of source and paths of this machine
    for part in (model, *model.graph.node, *model.graph.value_info, *model.graph.initializer, *model.graph.input):
        part.ClearField("metadata_props")
        part.ClearField("doc_string")
    for key in sorted(metadata):
        model.metadata_props.add(key=key, value=metadata[key])
    model.graph.name = "policy"
    content: bytes = model.SerializeToString(deterministic=True)
    return content


class OnnxRunner:
    """A function from inputs to outputs, by name, that runs an ONNX file."""

    def __init__(self, content: bytes) -> None:
        """Load the file's bytes.

        Raises:
            Exception: onnxruntime does not run it.
        """
        import onnxruntime

        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = 1
        self._session = onnxruntime.InferenceSession(content, options, providers=["CPUExecutionProvider"])
        self._outputs = [each.name for each in self._session.get_outputs()]

    def __call__(self, inputs: Mapping[str, NDArray[Any]]) -> dict[str, NDArray[Any]]:
        """Compute all outputs."""
        return dict(zip(self._outputs, self._session.run(None, dict(inputs)), strict=True))
