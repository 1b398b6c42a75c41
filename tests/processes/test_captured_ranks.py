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


def require_close(found, plain):
    for mine, theirs in zip(found, plain, strict=True):
        torch.testing.assert_close(mine["weights"], theirs["weights"], rtol=1e-5, atol=1e-8)  # rates are float32
        for numbers, expected in zip(mine["stats"], theirs["stats"], strict=True):
            assert numbers == pytest.approx(expected, rel=1e-5, abs=1e-9)
    assert torch.equal(found[0]["weights"], found[1]["weights"])


@pytest.fixture(scope="module")
def plain(tmp_path_factory):
    """The ranks without recordings."""
    return trained(tmp_path_factory.mktemp("plain"), "plain")[0]


def test_recorded_steps_of_two_ranks_give_the_weights_of_ddp(plain, tmp_path):
    recorded, said = trained(tmp_path, "recorded")
    require_close(recorded, plain)
    assert [each["replays"] for each in recorded] == [18 - 3] * 2, said  # but the first three steps
    assert "CUDA graph" not in said


def test_no_rank_uses_recordings_if_one_cannot(plain, tmp_path):
    refused, said = trained(tmp_path, "refused")
    require_close(refused, plain)
    assert [each["replays"] for each in refused] == [0, 0]
    assert said.count("--compile: gradient steps are not one CUDA graph (another rank cannot use one)") == 1


def test_no_rank_uses_recordings_if_their_minibatches_differ_in_size(tmp_path):
    """Of 15 rows one has 7 and the other 8."""
    uneven, said = trained(tmp_path, "uneven")
    require_close(uneven, trained(tmp_path, "plain uneven")[0])
    assert [each["replays"] for each in uneven] == [0, 0]
    assert said.count("(minibatches of the ranks differ in size)") == 1
