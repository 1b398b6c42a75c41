"""Collectives of ranks; the ranks are threads here, real processes are in the tests of properties."""

import pytest
import torch

from tests.fixtures.counting import on_counted_ranks


def mixed(rank):
    """One tensor of each type and of odd sizes, other values on every rank."""
    generator = torch.Generator().manual_seed(rank)
    return [
        torch.randint(0, 256, (5, 3), dtype=torch.uint8, generator=generator),
        torch.rand(7, generator=generator) < 0.5,
        torch.randint(-(2**62), 2**62, (3, 1, 2), generator=generator),
        torch.randn(11, generator=generator),
        torch.randn(4, 6, generator=generator).T,
        torch.tensor(rank),
        torch.zeros(0, 3),
        torch.tensor([torch.nan, torch.inf, -0.0, rank], dtype=torch.float64),
        torch.randn(13, generator=generator).to(torch.bfloat16),
        torch.randn(6, 5, generator=generator)[:, 1:4],
    ]


def bits(tensor):
    return tensor.contiguous().view(-1).view(torch.uint8)


@pytest.mark.parametrize("size", [1, 2, 3, 5])
@pytest.mark.parametrize("kept", [slice(None), slice(0, 1), slice(1, 2), slice(5, 7), slice(8, None)])
def test_gather_all_gives_everybody_everything(size, kept):
    """Bit for bit, in order of rank, in a single collective."""
    results, calls = on_counted_ranks(size, lambda ranks: ranks.gather_all(mixed(ranks.rank)[kept]))
    expected = [torch.stack(each) for each in zip(*(mixed(rank)[kept] for rank in range(size)), strict=True)]
    for result in results:
        for got, want in zip(result, expected, strict=True):
            assert (got.dtype, got.shape) == (want.dtype, want.shape)
            assert torch.equal(bits(got), bits(want))
    assert calls == [0 if size == 1 else 1] * size


@pytest.mark.parametrize("size", [1, 2, 4])
def test_gather(size):
    results, _ = on_counted_ranks(size, lambda ranks: ranks.gather(torch.tensor([ranks.rank, 10.0])))
    expected = torch.tensor([[rank, 10.0] for rank in range(size)])
    assert all(torch.equal(result, expected) for result in results)
