"""Share of an update's time that its matrix products need: samples per second of both, on one core, in turns.

    python benchmarks/update.py [--rows 64 1024 4096] [--activation relu] [--rounds 15] [--compile]

The update is that of the scripts in one process, epochs x minibatches with gather, loss, backward, clipping, Adam and
statistics, of the default agent on LunarLander (8 -> 64 -> 64 -> 4 and 8 -> 64 -> 64 -> 1). The products are those of
the layers alone: forward, gradients of weights, gradients of inputs; into memory that is there already.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable
from functools import partial

import torch
from torch import Tensor

from fabric_ppo.agents.make import make_agent
from fabric_ppo.config import Config
from fabric_ppo.envs.spaces import EnvSpec, SpaceSpec
from fabric_ppo.fast.captured_step import CapturedStep
from fabric_ppo.fast.gradient_clip import GradientClip
from fabric_ppo.fast.loss_module import PPOLoss, compile_loss, make_optimizer
from fabric_ppo.ppo.batch import Batch, Rows
from fabric_ppo.ppo.loss import minibatch_loss
from fabric_ppo.ppo.schedules import coefficients
from fabric_ppo.ppo.update import ppo_update
from fabric_ppo.process.group import ALONE
from fabric_ppo.run.resolve import resolve

SPEC = EnvSpec(
    "LunarLander-v3", SpaceSpec("box", (8,), "float32"), SpaceSpec("discrete", (), "int64", sizes=(4,), start=(0,))
)
ROWS_AT_LEAST, EPOCHS = 4096, 2
MANY_ROWS = 1024
"""Rows from which PyTorch multiplies faster the other way round where a layer has few inputs."""


def make_batch(count: int) -> Batch:
    """`count` random rows."""
    numbers = [torch.randn(count) for _ in range(4)]
    return Batch(Rows(torch.randn(count, 8), torch.randint(0, 4, (count,)), *numbers, torch.ones(count)), 0, 1, 42, 0)


def update_of(kind: str, config: Config, batch: Batch) -> Callable[[], object]:
    """One whole update on the device of the rows, with the loss as `kind` says."""
    module = PPOLoss(make_agent(SPEC, config), config).to(batch.rows.obs.device)
    optimizer, clip_gradient = make_optimizer(module, config), GradientClip(module, config.max_grad_norm)
    if kind == "compiled":
        compile_loss(module, config)

    def step(loss: Tensor) -> Tensor:
        optimizer.zero_grad()
        loss.backward()
        norm = clip_gradient()
        optimizer.step()
        return norm

    loss_fn = partial(minibatch_loss, module.weights) if kind == "autograd" else module
    captured = CapturedStep(loss_fn, step, optimizer, config, ALONE)
    return lambda: ppo_update(captured.loss, batch, captured.step, coefficients(config, 0, 1), config)


def products_of(config: Config, minibatches: int) -> Callable[[], object]:
    """The matrix products of an update's minibatches."""
    rows = config.per_rank_batch_size
    products: list[tuple[Tensor, Tensor, Tensor]] = []
    agent = make_agent(SPEC, config)
    for network in (agent.policy, agent.value):
        for number, layer in enumerate(network.linear_layers):
            weight = layer.weight.detach()
            outputs, inputs = weight.shape
            value, grad = torch.randn(rows, inputs), torch.randn(rows, outputs)
            products += [(value, weight.t(), torch.empty(rows, outputs))]
            if rows >= MANY_ROWS and 2 * inputs <= outputs:
                products += [(value.t(), grad, torch.empty(inputs, outputs))]
            else:
                products += [(grad.t(), value, torch.empty_like(weight))]
            products += [(grad, weight, torch.empty(rows, inputs))] if number > 0 else []

    def run() -> None:
        for _ in range(minibatches):
            for left, right, out in products:
                torch.mm(left, right, out=out)

    return run


def seconds_of(function: Callable[[], object]) -> float:
    """Measure the seconds of one call."""
    started = time.perf_counter()
    function()
    return time.perf_counter() - started


def measure(rows: int, given: argparse.Namespace) -> None:
    """Let them take turns and print a line for each."""
    count = max(2 * rows, ROWS_AT_LEAST)  # more than one minibatch: they are permuted
    flags = {"per_rank_batch_size": rows, "update_epochs": EPOCHS, "activation_function": given.activation}
    config = resolve(Config(**flags, learning_rate=1e-5, compile=given.compile))
    batch = make_batch(count)
    kinds = ["ours", "autograd", *(["compiled"] if given.compile else [])]
    ways = {"products alone": products_of(config, EPOCHS * batch.num_minibatches(rows))}
    ways |= {kind: update_of(kind, config, batch) for kind in kinds}
    for function in ways.values():
        function()
    seconds = {name: [] for name in ways}
    for _ in range(given.rounds):
        for name, function in ways.items():
            seconds[name].append(seconds_of(function))
    for name, each in seconds.items():
        shares = [alone / took for alone, took in zip(seconds["products alone"], each, strict=True)]
        speed = EPOCHS * count / statistics.median(each)
        span = f"{min(shares):.0%} to {max(shares):.0%}"
        print(f"{rows:6} rows | {name:14} | {speed:10,.0f} samples/s | {statistics.median(shares):4.0%} ({span})")


def main() -> None:
    """Measure for each number of rows."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, nargs="+", default=[64, 1024, 4096], help="of a minibatch")
    parser.add_argument("--activation", choices=("relu", "tanh"), default="relu")
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--compile", action="store_true")
    given = parser.parse_args()
    torch.set_num_threads(1)
    print("minibatch   | loss           | speed, median        | speed of the update over that of its products")
    for rows in given.rows:
        measure(rows, given)


if __name__ == "__main__":
    main()
