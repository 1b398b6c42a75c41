"""Tensors of several types in one packet of bytes."""

from __future__ import annotations

import torch

from fabric_ppo.process import packets
from fabric_ppo.process.packets import copy_together, move_together, pack, unpack


def tensors() -> list[torch.Tensor]:
    """Numbers of all widths, shapes without entries, and memory that is not contiguous."""
    generator = torch.Generator().manual_seed(0)
    return [
        torch.rand(3, 2, generator=generator) < 0.5,
        torch.randn(5, 2, generator=generator),
        torch.randint(-(2**40), 2**40, (2, 3), generator=generator),
        torch.randint(0, 256, (4, 1, 3), dtype=torch.uint8, generator=generator),
        torch.zeros(2, 0),
        torch.tensor(7.0, dtype=torch.float64),
        torch.randn(4, 6, dtype=torch.float64, generator=generator)[:, ::2],
    ]


def test_what_is_unpacked_is_what_was_packed():
    own = tensors()
    for found, expected in zip(unpack(pack(own), own), own, strict=True):
        assert found.dtype == expected.dtype
        assert torch.equal(found, expected)


def test_packets_of_several_ranks_are_unpacked_side_by_side():
    own = tensors()
    other = [each.flip(0) if each.ndim else -each for each in own]
    for found, a, b in zip(unpack(torch.stack([pack(own), pack(other)]), own), own, other, strict=True):
        assert torch.equal(found, torch.stack([a, b]))


def test_copies_arrive():
    own = tensors()
    targets = [torch.zeros(each.shape, dtype=each.dtype) for each in own]
    copy_together(own, targets)
    assert all(torch.equal(a, b) for a, b in zip(own, targets, strict=True))
    copy_together([], [])


def test_what_crosses_crosses_in_one_transfer(monkeypatch):
    """From one device to another; what is there already stays as it is."""
    own, there = tensors(), torch.zeros(3, device="meta")
    crossings = []
    monkeypatch.setattr(packets, "pack", lambda *args: crossings.append(args) or pack(*args))
    first, *moved, last = move_together([there, *own, there], torch.device("meta"))
    assert first is last is there
    assert [(each.shape, each.dtype, each.device.type) for each in moved] == [
        (each.shape, each.dtype, "meta") for each in own
    ]
    assert len(crossings) == 1
    assert move_together(own, torch.device("cpu"))[0] is own[0]
