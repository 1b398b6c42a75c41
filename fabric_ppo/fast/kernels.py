"""The compiled functions of `kernels.c` and `convolutions.c`: built at their first use, and kept on the disk."""

from __future__ import annotations

import contextlib
import ctypes
import functools
import hashlib
import platform
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor

from fabric_ppo.process.console import print_from_rank_zero, print_note
from fabric_ppo.process.extras import install
from fabric_ppo.process.machine import c_compiler, cache_folder

_SOURCE = Path(__file__).with_name("kernels.c")
_BESIDE = tuple(Path(__file__).with_name(name) for name in ("convolutions.c", "vectors.h"))
"""Files that are compiled with it, into one library."""
_FLAGS = ("-O3", "-std=gnu11", "-ffp-contract=fast", "-fno-math-errno", "-shared", "-fPIC")
_SMALL = 2**18
"""Most numbers in tensors with which starting PyTorch's functions takes long beside computing them."""
_REALS = {torch.float32: "float", torch.float64: "double"}


@functools.cache
def kernels(dtype: torch.dtype) -> ctypes.CDLL | None:
    """Return the functions of `kernels.c` for a type of numbers; None where they cannot be had.

    A line says when they are compiled, and why they cannot be.
    """
    if dtype not in _REALS or sys.platform == "win32":
        return None
    if not (command := c_compiler()):
        print_from_rank_zero(
            f"no C compiler was found, so training takes longer: cc of the system helps, or {install('native')}"
        )
        return None
    try:
        return _declared(_library(_path(command, dtype), command, dtype))
    except OSError as error:
        reason = f"{error}; CC names another compiler, TMPDIR another folder to compile in"
    except subprocess.SubprocessError as error:
        reason = _told(getattr(error, "stderr", None) or str(error))
    print_from_rank_zero(f"{_SOURCE.name} could not be compiled, so training takes longer: {reason}")
    return None


def kernels_for(tensors: Sequence[Tensor]) -> ctypes.CDLL | None:
    """Return the functions for dense tensors of one type on the CPU, few and small enough; else None."""
    dtype, size = tensors[0].dtype, 0
    for each in tensors:
        size += each.numel()
        if not each.is_cpu or each.dtype is not dtype or size > _SMALL or not each.is_contiguous():
            return None
    return kernels(dtype)


def origin(library: ctypes.CDLL) -> str:
    """Return a name for the source and the compiler of a shared library, whatever the processor."""
    return Path(library._name).stem.split("_")[1]


def _path(command: list[str], dtype: torch.dtype) -> Path:
    """Return where the shared library for a type is kept: its name says what it is made of."""
    made_of = b"".join(each.read_bytes() for each in (_SOURCE, *_BESIDE)) + " ".join([*command, *_flags()]).encode()
    names = [hashlib.sha256(each).hexdigest()[:12] for each in (made_of, _processor().encode())]
    return cache_folder() / f"kernels_{'_'.join(names)}_{_REALS[dtype]}.so"


def _library(path: Path, command: list[str], dtype: torch.dtype) -> ctypes.CDLL:
    """Load a shared library, which is compiled unless it is there, and whole."""
    with contextlib.suppress(OSError):
        return ctypes.CDLL(str(path))
    started = time.perf_counter()
    with tempfile.TemporaryDirectory() as folder:
        built = Path(folder) / path.name
        sources = [f"-I{_BESIDE[0].parent}", *(str(each) for each in (_SOURCE, *_BESIDE) if each.suffix == ".c")]
        words = [*command, *_flags(), f"-DREAL={_REALS[dtype]}", "-o", str(built), *sources, "-lm"]
        subprocess.run(words, check=True, capture_output=True, text=True, errors="replace", timeout=300)
        why_not = _keep(built, path)
        kept = f"but not kept for the next run ({why_not})" if why_not else "once for this machine"
        print_note(f"compiled {_SOURCE.name} ({_REALS[dtype]}) in {time.perf_counter() - started:.1f} s, {kept}")
        # from here it is in memory
        return ctypes.CDLL(str(built if why_not else path))


def _keep(built: Path, path: Path) -> str:
    """Put a file where `kernels` looks for it; return why that cannot be, or nothing."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        # several ranks may come here at once: each copies a file of its own, and the last one stays
        with tempfile.TemporaryDirectory(dir=path.parent) as folder:
            shutil.copy(built, folder)
            (Path(folder) / path.name).replace(path)
    except OSError as error:
        return f"{error}; FABRIC_PPO_CACHE names another folder"
    return ""


def _flags() -> list[str]:
    return [*_FLAGS, "-march=native" if platform.machine() in ("x86_64", "AMD64") else "-mcpu=native"]


def _told(text: str) -> str:
    """Return the line of a compiler's output that says most."""
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    return next((line for line in lines if "error" in line), lines[-1] if lines else "the compiler says nothing")


def _processor() -> str:
    """Return what code for this very processor depends on."""
    try:
        lines = Path("/proc/cpuinfo").read_text(errors="replace").splitlines()
    except OSError:  # not on Linux
        return platform.processor()
    return "\n".join(dict.fromkeys(line for line in lines if line.startswith(("flags", "Features", "model name"))))


def _fields(ctype: type, *names: str) -> list[tuple[str, type]]:
    return [(name, ctype) for name in names]


class Layer(ctypes.Structure):
    """`layer` of `kernels.c`."""

    _fields_ = _fields(ctypes.c_int64, "inputs", "outputs", "place", "activation")


class Network(ctypes.Structure):
    """`network` of `kernels.c`."""

    _fields_ = (("num_layers", ctypes.c_int64), ("layers", ctypes.POINTER(Layer)))


class Encoding(ctypes.Structure):
    """`encoding` of `kernels.c`."""

    _fields_ = (("source", ctypes.c_int64), *_fields(ctypes.c_void_p, "mean", "std"), ("bound", ctypes.c_double))


class AgentStruct(ctypes.Structure):
    """`agent` of `kernels.c`."""

    _fields_ = (
        *_fields(ctypes.c_int64, "num_weights", "block_rows", "is_gaussian", "place_of_std"),
        *_fields(ctypes.c_double, "least_log_std", "most_log_std"),
        ("encoding", Encoding),
        *_fields(Network, "trunk", "policy", "value"),
        *_fields(ctypes.c_void_p, "weights", "transposed", "encoded", "trunk_values"),
        *_fields(ctypes.c_void_p, "policy_values", "value_values", "policy_slopes", "trunk_slopes", "scratch"),
    )


class Minibatch(ctypes.Structure):
    """`minibatch` of `kernels.c`."""

    _fields_ = (
        ("rows", ctypes.c_int64),
        *_fields(ctypes.c_void_p, "obs", "actions", "log_probs", "values", "advantages", "returns", "weights"),
    )


class CoefficientsStruct(ctypes.Structure):
    """`coefficients` of `kernels.c`."""

    _fields_ = (*_fields(ctypes.c_double, "clip_coef", "vf_coef", "ent_coef"), ("clip_vloss", ctypes.c_int64))


class ConvolutionStruct(ctypes.Structure):
    """`convolution` of `convolutions.c`."""

    _fields_ = (
        *_fields(ctypes.c_int64, "groups", "height", "width", "depth", "kernel", "stride", "outputs"),
        *_fields(ctypes.c_int64, "out_height", "out_width", "values_row"),
        *_fields(ctypes.c_void_p, "weights", "biases", "back", "values", "slopes"),
        *_fields(ctypes.c_void_p, "weights_gradient", "biases_gradient"),
    )


def _declared(library: ctypes.CDLL) -> ctypes.CDLL:
    """Declare the types of the functions."""
    pointer, count, agent = ctypes.c_void_p, ctypes.c_int64, ctypes.POINTER(AgentStruct)
    structs = [ctypes.POINTER(each) for each in (AgentStruct, Minibatch, CoefficientsStruct)]
    library.minibatch_loss.argtypes = [*structs, pointer, pointer]
    library.minibatch_loss.restype = ctypes.c_double
    library.transpose.argtypes = [agent]
    library.act.argtypes = [agent, pointer, count, *[pointer] * 4]
    library.values.argtypes = [agent, pointer, count, pointer]
    library.draw.argtypes = [pointer, pointer, count, count, pointer, pointer]
    number = ctypes.c_double
    library.clip.argtypes, library.clip.restype = [pointer, count, number], number
    library.adam.argtypes = [*[pointer] * 4, count, pointer, *[number] * 4]
    for convolve in (library.convolve, library.add_convolution_gradients):
        convolve.argtypes = [ctypes.POINTER(ConvolutionStruct), count, pointer, count, pointer, pointer]
        convolve.restype = None
    for function in (library.transpose, library.act, library.values, library.draw, library.adam):
        function.restype = None
    return library
