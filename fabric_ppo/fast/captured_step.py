"""A gradient step as one CUDA graph; stands for the same kernels, started one by one.

For small networks a GPU computes a step of some sixty kernels in less time than the host takes to
start them. A graph is started at once (https://pytorch.org/docs/stable/notes/cuda.html, "CUDA Graphs").
Among several ranks the graph averages their gradients, too, by nccl.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor
from torch.nn.parallel import DistributedDataParallel

from fabric_ppo.config import Config
from fabric_ppo.fast.adam import LeanAdam
from fabric_ppo.fast.coefficient_tensors import CoefficientTensors, rest_of
from fabric_ppo.fast.cuda_graphs import CudaGraphs, Record, put_back
from fabric_ppo.ppo.batch import Rows
from fabric_ppo.ppo.loss import Coefficients, LossFn, MinibatchLoss
from fabric_ppo.ppo.returned import checked_optimizer
from fabric_ppo.process.console import print_from_rank_zero
from fabric_ppo.process.errors import ConfigError, first_line
from fabric_ppo.process.group import Ranks

Run = Callable[[], tuple[Tensor, Tensor]]
"""A gradient step on rows that are in place; returns the loss's parts and the gradient's norm."""

_COMMON = (torch.float32, torch.float64, torch.bfloat16, torch.int64, torch.uint8, torch.bool)
"""Types of which several columns are copied by one kernel."""
_WARM_UP = 3
"""Steps of each size that are taken one by one first, in which libraries allocate and choose kernels."""
_TOGETHER = 100
"""Steps of a run among which several ranks record; at each of them they compare the sizes of their minibatches."""


@contextlib.contextmanager
def recordable(device: torch.device, config: Config) -> Iterator[None]:
    """Have what is made within the block, such as DDP, take no part in the default stream, which no graph can hold."""
    if device.type != "cuda" or not config.compile:
        yield
        return
    if hasattr(torch.autograd.graph, "set_warn_on_accumulate_grad_stream_mismatch"):
        torch.autograd.graph.set_warn_on_accumulate_grad_stream_mismatch(False)
    stream, default = torch.cuda.Stream(device), torch.cuda.current_stream(device)
    stream.wait_stream(default)
    with torch.cuda.stream(stream):
        yield
    default.wait_stream(stream)


class CapturedStep:
    """Loss and step of a minibatch, as one CUDA graph with `--compile` on a GPU; else as they are.

    A graph is used from the fourth minibatch of its size on, if its first step gives the same bits as
    the kernels one by one. Where it cannot be recorded, these are started as ever, and a line says why.
    Several ranks use graphs only if their minibatches have the same sizes: nccl wants a collective to be
    recorded on all of them, or on none.

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
        ddp: DistributedDataParallel | None = None,
        record: Record | None = None,
    ) -> None:
        """Choose for a script's loss and step.

        Args:
            loss_fn, step: as `ppo_update` takes them.
            optimizer: what `step` steps, perhaps in Fabric's wrapper.
            config: whether to `compile`.
            ranks: those whose gradients are averaged. They use graphs all together, or none.
            ddp: what averages them; None where there is only one rank.
            record: what records; None: a CUDA graph, if all that trains is on a GPU.
        """
        self.loss, self.step = loss_fn, step
        if not config.compile or (ranks.size > 1 and ddp is None):
            return
        bare = checked_optimizer(getattr(optimizer, "optimizer", optimizer))
        trained = [each for group in bare.param_groups for each in group["params"]]
        if record is None and not all(each.is_cuda for each in trained):
            return
        if not isinstance(bare, LeanAdam):
            _say_why(f"an optimizer of your own, {type(bare).__name__}")
            return
        if record is None and ddp is not None and (why := _why_not_in_graphs(ddp)):
            _say_why(why)
            return
        self._ranks, self._average = ranks, _Average(ddp) if ddp else None
        self._device = trained[0].device
        self._loss_fn, self._step, self._optimizer = loss_fn, step, bare
        self._record: Record | None = record or CudaGraphs()
        self._steps: dict[tuple[int, Coefficients], _Steps] = {}
        self._taken, self._norm = 0, torch.zeros(())
        self._coefs = CoefficientTensors(trained[0])
        self.loss, self.step = self._take, self._norm_of

    def _take(self, rows: Rows, coefs: Coefficients) -> MinibatchLoss:
        """Take a step on a minibatch; the loss that it returns has no gradient."""
        self._optimizer.write_rates()
        self._taken += 1
        if self._record is not None and self._have_other_sizes(len(rows.weights)):
            self._give_up("minibatches of the ranks differ in size")
        if self._record is None:
            loss = self._loss_fn(rows, coefs)
            self._norm = self._step(loss.loss)
            return loss._replace(loss=loss.loss.detach())
        key = len(rows.weights), rest_of(coefs)
        if key not in self._steps:
            self._steps[key] = _Steps(rows)
        parts, self._norm = self._run(self._steps[key], rows, self._coefs.put(coefs))
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

        steps.taken += 1
        may_record = self._ranks.size == 1 or self._taken <= _TOGETHER
        if may_record and steps.replay is None and steps.taken > _WARM_UP:
            return self._record_step(steps, run)
        if steps.replay is None:
            return self._one_by_one(run)
        steps.replay()
        return steps.results[0].clone(), steps.results[1].clone()

    def _one_by_one(self, run: Run) -> tuple[Tensor, Tensor]:
        """Take a step, on the stream of the recordings where there is one."""
        return self._record.warm_up(run) if isinstance(self._record, CudaGraphs) else run()

    def _record_step(self, steps: _Steps, run: Run) -> tuple[Tensor, Tensor]:
        """Take a step one by one, and again from a graph that is recorded; keep it if both are equal."""
        assert self._record is not None
        state = self._optimizer.tensors()
        before = [each.detach().clone() for each in state]
        expected = [each.detach().clone() for each in self._one_by_one(run)]
        after = [each.detach().clone() for each in state]
        # recording may itself take a step, as with a stand-in for graphs
        put_back(state, before)
        why = ""
        try:
            with self._average.in_place_of_ddp() if self._average else contextlib.nullcontext():
                steps.replay, steps.results = self._record(run)
        except (RuntimeError, ConfigError) as error:
            why = first_line(error)
        if not self._is_on_any_rank(bool(why)):
            assert steps.replay is not None
            put_back(state, before)
            steps.replay()
            if not all(map(torch.equal, [*steps.results, *state], [*expected, *after])):
                why = "its step differs from that of the kernels one by one"
        if self._is_on_any_rank(bool(why)):
            self._give_up(why or "another rank cannot use one")
        put_back(state, after)
        return expected[0], expected[1]

    def _have_other_sizes(self, size: int) -> bool:
        """Return True if another rank's minibatch has another size; only the first steps are compared."""
        if self._ranks.size == 1 or self._taken > _TOGETHER:
            return False
        sizes = self._ranks.gather(torch.tensor(float(size), device=self._device))
        return bool((sizes != size).any())

    def _is_on_any_rank(self, flag: bool) -> bool:
        """Return True if a flag is set on a rank; among several, all must ask."""
        if self._ranks.size == 1:
            return flag
        return bool(self._ranks.gather(torch.tensor(float(flag), device=self._device)).any())

    def _give_up(self, why: str) -> None:
        """Start kernels one by one from now on."""
        self._record = None
        self._steps.clear()
        _say_why(why)


class _Average:
    """Average of the ranks' gradients as an operation of the backward pass, as a graph can hold it.

    DDP's own keeps account of each backward pass, and is lost if a recording breaks off.
    """

    def __init__(self, ddp: DistributedDataParallel) -> None:
        self._ddp, self._group, self._is_on = ddp, ddp.process_group, False
        for each in ddp.parameters():
            if each.requires_grad:
                each.register_post_accumulate_grad_hook(self._reduce)

    @contextlib.contextmanager
    def in_place_of_ddp(self) -> Iterator[None]:
        """Average here, and not in DDP, within the block."""
        self._is_on = True
        try:
            with self._ddp.no_sync():
                yield
        finally:
            self._is_on = False

    @torch.no_grad()
    def _reduce(self, parameter: Tensor) -> None:
        if self._is_on and parameter.grad is not None:
            # the division comes before the sum, and is a product, as in DDP
            parameter.grad.mul_(1 / self._group.size())
            dist.all_reduce(parameter.grad, group=self._group)


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


def _why_not_in_graphs(ddp: DistributedDataParallel) -> str:
    """Return why a graph cannot average gradients as DDP does; empty if it can."""
    if "cuda:nccl" not in dist.get_backend_config(ddp.process_group):
        return "ranks that share a GPU average their gradients by gloo, on the CPU"
    return "DDP looks for unused parameters" if ddp.find_unused_parameters else ""


def _say_why(why: str) -> None:
    print_from_rank_zero(
        f"--compile: gradient steps are not one CUDA graph ({why}); their kernels are started one by one"
    )
