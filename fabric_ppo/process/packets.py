"""Packets: several tensors as one vector of bytes, for a collective or a copy between devices.

Either costs its latency, not the few bytes of a column.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterable, Sequence

import torch
from torch import Tensor

ALIGNMENT = 8
"""Bytes: where tensors of several types share a buffer, each starts at a multiple of this."""


def pack(tensors: Sequence[Tensor], is_pinned: bool = False) -> Tensor:
    """Return tensors of one device, of any types, as bytes one after the other, `[n]` uint8.

    Args:
        tensors: on one device.
        is_pinned: put the packet where a GPU can copy it from without being waited for.
    """
    parts: list[Tensor] = []
    for each in tensors:
        own = each.detach().contiguous().view(-1).view(torch.uint8)
        parts += [own, own.new_zeros(-len(own) % ALIGNMENT)]
    size = sum(map(len, parts))
    out = torch.empty(size, dtype=torch.uint8, pin_memory=True) if is_pinned else None
    return torch.cat(parts, out=out)


def unpack(packet: Tensor, like: Iterable[Tensor]) -> list[Tensor]:
    """Return the tensors in a packet, as views of it where that is possible.

    Args:
        packet: `[..., n]`: what `pack` returned, or several of the same kind in one tensor.
        like: tensors of the same shapes and types; each is found as `[..., *shape]`.
    """
    found, start, several = [], 0, packet.shape[:-1]
    for each in like:
        own = packet[..., start : start + each.nbytes]
        # the packets of several ranks lie side by side, where a part of each is not one piece
        found.append(own.contiguous().view(each.dtype).view((*several, *each.shape)))
        start += -(-each.nbytes // ALIGNMENT) * ALIGNMENT
    return found


def move_together(tensors: Sequence[Tensor], device: torch.device) -> list[Tensor]:
    """Return tensors on `device`; those of another one cross in one transfer.

    From the CPU to a GPU it is not waited for.
    """
    away = [each for each in tensors if each.device != device]
    if not away:
        return list(tensors)
    # pinned memory is not used again before the copy from it has ended: PyTorch keeps account of it
    is_pinned = device.type == "cuda" and away[0].is_cpu
    moved = iter(unpack(pack(away, is_pinned).to(device, non_blocking=is_pinned), away))
    return [each if each.device == device else next(moved) for each in tensors]


def begin_copy(packet: Tensor) -> tuple[Tensor, Callable[[], None]]:
    """Begin to copy a packet from a GPU, beside what the GPU does next.

    Returns:
        Where it arrives, in pinned memory, and a function that waits until it has.
    """
    host = torch.empty(packet.shape, dtype=packet.dtype, pin_memory=True)
    stream, arrived = _side_stream(packet.device), torch.cuda.Event()
    stream.wait_stream(torch.cuda.current_stream(packet.device))
    with torch.cuda.stream(stream):
        host.copy_(packet, non_blocking=True)
        arrived.record()
    packet.record_stream(stream)  # its memory is free for others afterwards
    return host, arrived.synchronize


@functools.cache
def _side_stream(device: torch.device) -> torch.cuda.Stream:
    return torch.cuda.Stream(device)


@torch.no_grad()
def copy_together(sources: Sequence[Tensor], targets: Sequence[Tensor]) -> None:
    """Copy tensors of one device into others, of the same shapes and types, in one transfer."""
    if not targets:
        return
    for target, moved in zip(targets, move_together(sources, targets[0].device), strict=True):
        target.copy_(moved)
