"""The status that a launcher ends with, of the statuses of its ranks."""

from __future__ import annotations

import pytest
from torch.distributed.elastic.multiprocessing.errors import ChildFailedError, ProcessFailure

from fabric_ppo.tools.launcher import _status_of


@pytest.mark.parametrize(("statuses", "expected"), [((1, 2), 2), ((2, 1), 2), ((1, 1), 1), ((75, 1), 75)])
def test_bad_input_on_a_rank_is_bad_input_whoever_ended_first(statuses, expected):
    """The others lose contact with that rank, and may end before it."""
    failures = {rank: ProcessFailure(rank, 0, status, "none") for rank, status in enumerate(statuses)}
    assert _status_of(ChildFailedError("train_torch.py", failures), []) == expected
