"""A gradient step as one CUDA graph; stands for the same kernels, started one by one.

For small networks a GPU computes a step of some sixty kernels in less time than the host takes to
start them. A graph is started at once (https://pytorch.org/docs/stable/notes/cuda.html, "CUDA Graphs").
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from fabric_ppo.config import Config
from fabric_ppo.fast.adam import LeanAdam
from fabric_ppo.ppo.batch import Rows
from fabric_ppo.ppo.loss import Coefficients, LossFn, MinibatchLoss
from fabric_ppo.ppo.returned import checked_optimizer
from fabric_ppo.process.console import print_from_rank_zero
from fabric_ppo.process.errors import ConfigError, first_line
from fabric_ppo.process.group import Ranks

Run = Callable[[], tuple[Tensor, Tensor]]
"""A gradient step on rows that are in place; returns the loss's parts and the gradient's norm."""
Record = Callable[[Run], tuple[Callable[[], None], tuple[Tensor, Tensor]]]
"""Function that records a Run without taking it; returns what replays it, and where it writes its results."""

_COMMON = (torch.float32, torch.float64, torch.bfloat16, torch.int64, torch.uint8, torch.bool)
"""Types of which several columns are copied by one kernel."""
_WARM_UP = 3
"""Steps of each size that are taken one by one first, in which libraries allocate and choose kernels."""


class CapturedStep:
    """Loss and step of a minibatch, as one CUDA graph with `--compile` on a GPU; else as they are.

    A graph is used from the fourth minibatch of its size on, if its first step gives the same bits as
    the kernels one by one. Where it cannot be recorded, these are started as ever, and a line says why.

    Attributes:
        loss: from a minibatch and coefficients to a MinibatchLoss; of a graph, it takes the step too.
        step: from that loss to the gradient's norm.
    """

    def __init__(
        self,
        loss_fn: LossFn,
        step: Callable[[Tensor], Tensor],
        optimizer: Any,
        config: Config,
        ranks: Ranks,
        record: Record | None = None,
    ) -> None:
        """Choose for a script's loss and step.

        Args:
            loss_fn, step: as `ppo_update` takes them.
            optimizer: what `step` steps, perhaps in Fabric's wrapper.
            config: whether to `compile`.
            ranks: those whose gradients are averaged; among several DDP does that, and nothing is
                recorded.
            record: what records; None: a CUDA graph, if all that trains is on a GPU.
        """
        self.loss, self.step = loss_fn, step
        if not config.compile or ranks.size > 1:
            return
        bare = checked_optimizer(getattr(optimizer, "optimizer", optimizer))
        trained = [each for group in bare.param_groups for each in group["params"]]
        if record is None and not all(each.is_cuda for each in trained):
            return
        if not isinstance(bare, LeanAdam):
            _say_why(f"an optimizer of your own, {type(bare).__name__}")
            return
        self._loss_fn, self._step, self._optimizer = loss_fn, step, bare
        self._record: Record | None = record or _CudaGraphs()
        self._steps: dict[tuple[int, Coefficients], _Steps] = {}
        self._norm = torch.zeros(())
        self.loss, self.step = self._take, self._norm_of

    def _take(self, rows: Rows, coefs: Coefficients) -> MinibatchLoss:
        """Take a step on a minibatch; the loss that it returns has no gradient."""
        self._optimizer.write_rates()
        if self._record is None:
            loss = self._loss_fn(rows, coefs)
            self._norm = self._step(loss.loss)
            return loss._replace(loss=loss.loss.detach())
        key = len(rows.weights), coefs
        if key not in self._steps:
            self._steps[key] = _Steps(rows)
        parts, self._norm = self._run(self._steps[key], rows, coefs)
        return MinibatchLoss(parts[0].detach(), parts)

    def _norm_of(self, _: Tensor) -> Tensor:
        """Return the norm of the gradient of the last minibatch."""
        return self._norm

    def _run(self, steps: _Steps, rows: Rows, coefs: Coefficients) -> tuple[Tensor, Tensor]:
        """Take a step on a minibatch: by the graph, or on the way to one."""
        steps.put(rows)

        def run() -> tuple[Tensor, Tensor]:
            loss, parts = self._loss_fn(steps.rows, coefs)
            return parts, self._step(loss)

        if steps.replay is not None:
            steps.replay()
            return steps.results[0].clone(), steps.results[1].clone()
        assert self._record is not None
        steps.taken += 1
        return self._one_by_one(run) if steps.taken <= _WARM_UP else self._record_step(steps, run)

    def _one_by_one(self, run: Run) -> tuple[Tensor, Tensor]:
        """Take a step, on the stream of the recordings where there is one."""
        return self._record.warm_up(run) if isinstance(self._record, _CudaGraphs) else run()

    def _record_step(self, steps: _Steps, run: Run) -> tuple[Tensor, Tensor]:
        """Take a step one by one, and again from a graph that is recorded; keep it if both are equal."""
        assert self._record is not None
        state = self._optimizer.tensors()
        before = [each.detach().clone() for each in state]
        expected = [each.detach().clone() for each in self._one_by_one(run)]
        after = [each.detach().clone() for each in state]
        try:
            _put_back(state, before)
            replay, results = self._record(run)
            # recording may itself take a step, as with a stand-in for graphs
            _put_back(state, before)
            replay()
            is_equal = all(map(torch.equal, [*results, *state], [*expected, *after]))
            why = "" if is_equal else "its step differs from that of the kernels one by one"
        except (RuntimeError, ConfigError) as error:
            why = first_line(error)
        if why:
            self._record = None
            _say_why(why)
        else:
            steps.replay, steps.results = replay, results
        _put_back(state, after)
        return expected[0], expected[1]


class _Steps:
    """Minibatches of one size: rows in memory that stays, and the graph that reads it.

    Attributes:
        rows: the present minibatch.
        taken: how many have been, until there is a graph.
        replay: starts the graph; None before it is recorded.
        results: where the graph writes parts and norm.
    """

    def __init__(self, like: Rows) -> None:
        self.rows = Rows(*(torch.empty_like(each) for each in like))
        self.taken = 0
        self.replay: Callable[[], None] | None = None
        self.results: tuple[Tensor, Tensor] = (torch.zeros(()), torch.zeros(()))
        by_type: dict[torch.dtype, list[int]] = {}
        for place, each in enumerate(like):
            # kernels for several columns are there for the usual types
            if each.numel() and each.dtype in _COMMON:
                by_type.setdefault(each.dtype, []).append(place)
        self._places = list(by_type.values())
        self._others = [place for place, each in enumerate(like) if each.numel() and each.dtype not in _COMMON]

    @torch.no_grad()
    def put(self, rows: Rows) -> None:
        """Copy a minibatch into place; columns of one type in one kernel."""
        for places in self._places:
            torch._foreach_copy_([self.rows[k] for k in places], [rows[k] for k in places])
        for place in self._others:
            self.rows[place].copy_(rows[place])


class _CudaGraphs:
    """Recorder of CUDA graphs, on a stream of their own as PyTorch asks for, with one pool of memory."""

    def __init__(self) -> None:
        self._stream, self._pool = torch.cuda.Stream(), torch.cuda.graph_pool_handle()

    def warm_up(self, run: Run) -> tuple[Tensor, Tensor]:
        """Take a step on the stream of the recordings."""
        self._stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(self._stream):
            results = run()
        torch.cuda.current_stream().wait_stream(self._stream)
        return results

    def __call__(self, run: Run) -> tuple[Callable[[], None], tuple[Tensor, Tensor]]:
        """Record a step; a `Record`."""
        graph, stream = torch.cuda.CUDAGraph(), torch.cuda.current_stream()
        try:
            # other threads may use the GPU meanwhile, such as those that pin memory
            with torch.cuda.graph(graph, self._pool, self._stream, capture_error_mode="thread_local"):
                results = run()
        except RuntimeError as error:
            # the end of a broken recording raises another error, and leaves its stream in use
            torch.cuda.set_stream(stream)
            raise RuntimeError(first_line(error.__context__ or error)) from error
        return graph.replay, results


@torch.no_grad()
def _put_back(state: list[Tensor], values: list[Tensor]) -> None:
    for each, value in zip(state, values, strict=True):
        each.copy_(value)


def _say_why(why: str) -> None:
    print_from_rank_zero(
        f"--compile: gradient steps are not one CUDA graph ({why}); their kernels are started one by one"
    )
