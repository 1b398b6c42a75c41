"""CUDA graphs: kernels that are recorded once, and started all at once."""

from __future__ import annotations

import contextlib
import gc
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from fabric_ppo.process.errors import first_line

Record = Callable[[Callable[[], Any]], tuple[Callable[[], None], Any]]
"""Function that records a function without calling it; returns what replays it, and its results, whose memory stays."""


def release_graphs() -> None:
    """Free all graphs; nccl does not end before those that hold its collectives are gone."""
    # recorders may be in reference cycles, or in the frames of an error
    for each in gc.get_objects():
        if type(each) is CudaGraphs:
            for graph in each.graphs:
                graph.reset()


class CudaGraphs:
    """Recorder of CUDA graphs, on a stream of their own as PyTorch asks for, with one pool of memory.

    Attributes:
        graphs: those that have been recorded.
    """

    def __init__(self) -> None:
        """Record nothing yet."""
        self._stream, self._pool = torch.cuda.Stream(), torch.cuda.graph_pool_handle()
        self.graphs: list[torch.cuda.CUDAGraph] = []

    def warm_up(self, run: Callable[[], Any]) -> Any:
        """Call a function on the stream of the recordings."""
        self._stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(self._stream):
            results = run()
        torch.cuda.current_stream().wait_stream(self._stream)
        return results

    def __call__(self, run: Callable[[], Any]) -> tuple[Callable[[], None], Any]:
        """Record a function; a `Record`."""
        graph, stream = torch.cuda.CUDAGraph(), torch.cuda.current_stream()
        try:
            # other threads may use the GPU meanwhile, such as those that pin memory
            with torch.cuda.graph(graph, self._pool, self._stream, capture_error_mode="thread_local"):
                results = run()
        except RuntimeError as error:
            # the end of a broken recording raises another error, and leaves its stream in use; before
            # PyTorch 2.13 its pool of memory, too
            torch.cuda.set_stream(stream)
            with contextlib.suppress(RuntimeError):
                torch._C._cuda_endAllocateToPool(stream.device.index, self._pool)
            raise RuntimeError(first_line(error.__context__ or error)) from error
        self.graphs.append(graph)
        return graph.replay, results


@torch.no_grad()
def put_back(state: Sequence[Tensor], values: Sequence[Tensor]) -> None:
    """Copy values into tensors that stay where they are."""
    for each, value in zip(state, values, strict=True):
        each.copy_(value)
