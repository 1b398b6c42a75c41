"""Messages that tell what they hold come out as they went in, whatever came before."""

from __future__ import annotations

import math

import pytest
import torch

from fabric_ppo.architectures.parcel import Parcel

CPU = torch.device("cpu")
KINDS = [torch.float32, torch.float64, torch.uint8, torch.int64, torch.bool, torch.bfloat16]


class Wire:
    """Two ends; what one sends, the other receives in the same sizes and order."""

    def __init__(self):
        self.ends, self.sent = (Parcel(CPU), Parcel(CPU)), []

    def carry(self, values, tensors):
        """What the receiver gets, and the sizes of the transmissions."""
        self.ends[0].send(values, tensors, lambda content: self.sent.append(content.clone()))
        sizes = [len(each) for each in self.sent]

        def receive(content):
            came = self.sent.pop(0)
            assert len(came) == len(content), "both ends know the size"
            content.copy_(came)

        got = self.ends[1].receive(receive)
        assert self.sent == []
        return got, sizes


def random_tensors(number):
    torch.manual_seed(number)
    shapes = [(), (3,), (0, 4), (number * 500, 3), (5, 1)]
    return {
        f"{index}.x": torch.randint(0, 2, shapes[(index + number) % 5]).to(dtype) for index, dtype in enumerate(KINDS)
    }


def test_they_come_out_as_they_went_in():
    wire = Wire()
    for number in (0, 3, 1, 3, 9, 0):
        values = [number, {"a": 0.1, "b": [None, True, "ä"]}, math.inf]
        tensors = random_tensors(number)
        (got, came), _ = wire.carry(values, tensors)
        assert got == values
        assert list(came) == list(tensors)
        for name, tensor in tensors.items():
            assert came[name].dtype == tensor.dtype
            assert torch.equal(came[name], tensor)


@pytest.mark.parametrize("size", [10, 100_000])
def test_one_transmission_once_the_size_is_known(size):
    """Also where a number gets more digits."""
    wire = Wire()
    tensors = {"weights": torch.ones(size)}
    wire.carry([1], tensors)
    for number in (1, 10**6, 10**12):
        _, sizes = wire.carry([number, [0.1] * 10], tensors)
        assert len(sizes) == 1
        assert sizes[0] <= 4 * size + 3 * 4096
