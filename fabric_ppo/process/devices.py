"""GPUs of this host, and which of them a process takes; they are shared where they are fewer."""

from __future__ import annotations

from typing import NamedTuple

import torch

from fabric_ppo.process.launch import Launch


class RankDevice(NamedTuple):
    """Device of a rank, and the backend of the process group that it joins."""

    device: torch.device
    backend: str


def rank_device(launch: Launch, cuda: bool) -> RankDevice:
    """Return the device of a rank, each of which has a copy of the agent: the CPU, or with `cuda` a GPU."""
    if not cuda:
        return RankDevice(torch.device("cpu"), "gloo")
    num_gpus = count_gpus()
    backend = "cpu:gloo,cuda:nccl" if launch.local_world_size <= num_gpus else "gloo"
    return RankDevice(torch.device("cuda", launch.local_rank % num_gpus), backend)


def count_gpus() -> int:
    """Return the number of CUDA devices of this host that the process may use."""
    return torch.cuda.device_count() if torch.cuda.is_available() else 0


def gpu_name() -> str:
    """Return the card and the libraries on which the last bits of a computation on it depend."""
    versions = f"CUDA {torch.version.cuda}, cuDNN {torch.backends.cudnn.version()}"
    tf32 = [name for name, allows in (("products", _products()), ("convolutions", _convolutions())) if allows]
    return ", ".join([torch.cuda.get_device_name(), versions, *(f"TF32 in {name}" for name in tf32)])


def _products() -> bool:
    return torch.get_float32_matmul_precision() != "highest"


def _convolutions() -> bool:
    return bool(torch.backends.cudnn.allow_tf32)
