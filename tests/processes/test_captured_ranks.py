"""Gradient steps of two ranks, recorded with their average; a recorder stands for CUDA graphs, gloo for nccl."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest
import torch

from tests.fixtures.processes import PATIENCE


def trained(folder, kind):
    """What two ranks have after some updates, and what they print."""
    store, out = folder / f"{kind}.store", folder / kind
    ranks = [
        subprocess.Popen(
            [sys.executable, "-m", "tests.fixtures.captured_ranks", str(store), str(out), kind],
            env=os.environ | {"RANK": str(rank), "WORLD_SIZE": "2", "LOCAL_RANK": str(rank), "LOCAL_WORLD_SIZE": "2"},
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        for rank in range(2)
    ]
    said = [rank.communicate(timeout=PATIENCE)[0] for rank in ranks]
    assert [rank.returncode for rank in ranks] == [0, 0], said
    return [torch.load(f"{out}.{rank}") for rank in range(2)], "".join(said)


@pytest.fixture(scope="module")
def plain(tmp_path_factory):
    """The ranks without recordings."""
    return trained(tmp_path_factory.mktemp("plain"), "plain")[0]


def test_recorded_steps_of_two_ranks_give_the_weights_of_ddp(plain, tmp_path):
    """Also where their minibatches have different sizes, so that one rank records while another one has to join in."""
    recorded, said = trained(tmp_path, "recorded")
    assert torch.equal(recorded[0]["weights"], recorded[1]["weights"])
    for mine, theirs in zip(recorded, plain, strict=True):
        assert mine["replays"] >= 10, said
        torch.testing.assert_close(mine["weights"], theirs["weights"], rtol=1e-5, atol=1e-8)  # rates are float32
        for numbers, expected in zip(mine["stats"], theirs["stats"], strict=True):
            assert numbers == pytest.approx(expected, rel=1e-5, abs=1e-9)
    assert "CUDA graph" not in said


def test_no_rank_uses_recordings_if_one_cannot(plain, tmp_path):
    refused, said = trained(tmp_path, "refused")
    assert [each["replays"] for each in refused] == [0, 0]
    assert torch.equal(refused[0]["weights"], refused[1]["weights"])
    torch.testing.assert_close(refused[0]["weights"], plain[0]["weights"], rtol=1e-5, atol=1e-8)
    assert said.count("--compile: gradient steps are not one CUDA graph (another rank cannot use one)") == 1
