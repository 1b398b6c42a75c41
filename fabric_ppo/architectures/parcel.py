"""Messages whose receiver does not know beforehand what they hold."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor

from fabric_ppo.process.packets import ALIGNMENT

Transmit = Callable[[Tensor], object]
"""Function that sends a tensor of bytes, or receives one in place, over some collective."""

_PREFIX = 2 * 8
"""Bytes of two int64 at the beginning: length of the whole, and of the header."""
_ROUND = 4096
"""Sizes are multiples of it, so that a number with one more digit does not take a larger buffer."""


class Parcel:
    """JSON values and tensors, packed into one buffer of bytes that the sender and receivers keep.

    The bytes are two lengths, a JSON header, and the tensors. Whoever sends more than the buffer
    takes sends it as it is first: from the length in it the receivers know that a larger one
    follows, and all keep that. So a message whose size stays is one transmission.
    """

    def __init__(self, device: torch.device) -> None:
        """Allocate a small buffer on `device`; all ends begin with the same."""
        self._device = device
        self._buffer = blank_bytes(_ROUND, device)

    @torch.no_grad()
    def send(self, values: Any, tensors: Mapping[str, Tensor], transmit: Transmit) -> None:
        """Send JSON values, and tensors by name."""
        shapes = {name: [str(each.dtype).removeprefix("torch."), list(each.shape)] for name, each in tensors.items()}
        header = json.dumps([values, shapes]).encode()
        sizes = [len(header), *(each.nbytes for each in tensors.values())]
        starts = _starts(sizes)
        total = starts[-1]
        lengths = torch.tensor([total, len(header)])
        if total > len(self._buffer):
            self._buffer[:_PREFIX].view(torch.int64).copy_(lengths)
            transmit(self._buffer)
            self._grow(total)
        self._buffer[:_PREFIX].view(torch.int64).copy_(lengths)
        self._buffer[_PREFIX : _PREFIX + len(header)].copy_(torch.frombuffer(bytearray(header), dtype=torch.uint8))
        for each, start in zip(tensors.values(), starts[1:], strict=False):
            self._view(start, each.dtype, each.shape).copy_(each)
        transmit(self._buffer)

    def receive(self, transmit: Transmit) -> tuple[Any, dict[str, Tensor]]:
        """Receive what `send` sent; the tensors are valid until the next one."""
        transmit(self._buffer)
        total, length = self._lengths()
        if total > len(self._buffer):
            self._grow(total)
            transmit(self._buffer)
        values, shapes = json.loads(bytes(self._buffer[_PREFIX : _PREFIX + length].tolist()))
        kinds = [(getattr(torch, name), torch.Size(shape)) for name, shape in shapes.values()]
        starts = _starts([length, *(shape.numel() * dtype.itemsize for dtype, shape in kinds)])
        views = (self._view(start, *kind) for start, kind in zip(starts[1:], kinds, strict=False))
        return values, dict(zip(shapes, views, strict=True))

    def _lengths(self) -> tuple[int, int]:
        total, header = self._buffer[:_PREFIX].view(torch.int64).tolist()
        return total, header

    def _grow(self, total: int) -> None:
        """Replace the buffer by one that has some bytes to spare."""
        self._buffer = blank_bytes(-(-total // _ROUND) * _ROUND + _ROUND, self._device)

    def _view(self, start: int, dtype: torch.dtype, shape: torch.Size) -> Tensor:
        """Return a part of the buffer as a tensor."""
        return self._buffer[start : start + shape.numel() * dtype.itemsize].view(dtype).view(shape)


def _starts(sizes: list[int]) -> list[int]:
    """Return where parts of these sizes begin, and where the last one ends.

    Each begins at a multiple of ALIGNMENT, so that it can be viewed as its own type.
    """
    starts = [_PREFIX]
    for size in sizes:
        starts.append(-(-(starts[-1] + size) // ALIGNMENT) * ALIGNMENT)
    return starts


def blank_bytes(size: int, device: torch.device) -> Tensor:
    """Return zeros, `[size]` uint8, from which copies to and from a GPU need not be waited for."""
    pinned = device.type == "cpu" and torch.cuda.is_initialized()
    return torch.zeros(size, dtype=torch.uint8, device=device, pin_memory=pinned)
