"""What every test needs: one PyTorch thread, no display, and compiled functions that are there."""

from __future__ import annotations

import os
from pathlib import Path

os.environ.setdefault("SDL_VIDEODRIVER", "dummy")
os.environ.setdefault("SDL_AUDIODRIVER", "dummy")
# ranks are forked off tests, and a process that has used a GPU cannot be; `make gpu-check` shows it
if not os.environ.get("FABRIC_PPO_GPU"):
    os.environ["CUDA_VISIBLE_DEVICES"] = ""

import pytest
import torch

from fabric_ppo.fast.kernels import kernels
from fabric_ppo.process.machine import cache_folder

torch.set_num_threads(1)
# here, where nobody looks at what is printed; processes with another home find them, too
os.environ["FABRIC_PPO_CACHE"] = str(cache_folder())
for each in (torch.float32, torch.float64):
    kernels(each)


SLOW = (
    "unit/agents/test_encoders.py::test_an_agent_learns_from_images",
    "unit/agents/test_memory.py::test_what_has_to_be_remembered_is_learned_with_memory_only",
    "unit/agents/test_module.py::test_every_kind_of_network",
    "unit/agents/test_policy_file.py::test_a_damaged_header_never_shows_a_traceback",
    "unit/envs/test_atari.py",
    "unit/envs/test_masks.py::test_no_impossible_action_is_taken_by_workers",
    "unit/envs/test_recorder.py",
    "unit/fast/test_kernels.py",
    "unit/fast/test_loss_module.py::test_the_compiled_loss_is_the_loss",
    "unit/run/test_callbacks.py::test_a_run_that_is_killed_ends_where_its_callback_ended_it",
    "unit/run/test_setup.py::test_quiet_prints_nothing",
    "unit/run/test_trackers.py::test_videos_are_artifacts",
    "unit/test_api.py::test_nothing_is_printed_without_verbose",
    "unit/tools/report/test_page.py::test_groups_are_told_apart_by_what_differs",
    "unit/tools/report/test_page.py::test_of_a_damaged_run_is_shown_what_can_be_read",
    "unit/tools/report/test_page.py::test_the_same_folders_give_the_same_page",
    "unit/tools/test_export.py::test_onnx_has_names_types_and_a_free_batch",
    "unit/tools/test_export.py::test_the_file_acts_as_the_agent",
    "unit/tools/test_export.py::test_the_same_policy_gives_the_same_onnx",
    "unit/tools/test_export_refused.py::test_what_differs_is_not_written",
    "unit/tools/test_flags.py::test_every_count_takes_the_spellings_of_large_numbers",
    "unit/tools/test_plot_command.py::test_a_legend_of_many_long_names_is_in_the_picture_and_lower_than_its_panels",
    "unit/tools/test_plot_command.py::test_the_same_runs_give_the_same_file_whatever_the_configuration",
    "unit/tools/test_video.py",
)
"""Files and tests that compute for seconds: half of the time of all those without processes of their own."""


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Mark the slow tests, which `make test-fast` leaves out."""
    here = Path(__file__).parent
    for item in items:
        name = item.path.relative_to(here).as_posix() if here in item.path.parents else ""
        if name in SLOW or f"{name}::{getattr(item, 'originalname', None) or item.name}" in SLOW:
            item.add_marker(pytest.mark.slow)


@pytest.fixture(autouse=True)
def _one_thread():
    """A run sets the number of threads for the whole process: put it back."""
    yield
    torch.set_num_threads(1)
