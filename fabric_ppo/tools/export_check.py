"""The comparison of an exported policy with the agent itself."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from fabric_ppo.agents.distributions import make_distribution
from fabric_ppo.agents.policy import Policy
from fabric_ppo.envs.actions import action_converter
from fabric_ppo.envs.nested_actions import Unpacker
from fabric_ppo.envs.spaces import part_at
from fabric_ppo.tools.export_interface import MEMORY, NEXT_MEMORY, NOISE, Interface, split_rows
from fabric_ppo.tools.export_observations import Moment

Runner = Callable[[Mapping[str, NDArray[Any]]], Mapping[str, NDArray[Any]]]
"""Function from inputs to outputs, by name, that runs an exported policy."""

TOLERANCE = 1e-5
"""Largest difference of a number: absolute, relative where it is larger than 1."""
_BATCHES = (1, 7, 64)


@dataclass
class Agreement:
    """Result of a comparison.

    Attributes:
        observations: number of observations.
        largest: largest difference of each output's numbers, relative where they are large.
        other_actions: observations with another action, greedy or sampled.
        ties: observations where another choice has the same probability, to rounding.
    """

    observations: int = 0
    largest: dict[str, float] = field(default_factory=dict)
    other_actions: int = 0
    ties: int = 0

    @property
    def holds(self) -> bool:
        """Return True if the exported policy is the agent, to rounding."""
        return not self.other_actions and all(each <= TOLERANCE for each in self.largest.values())

    def describe(self) -> str:
        """Return a text that says how large the differences are."""
        numbers = ", ".join(f"{name} by {each:.1e}" for name, each in self.largest.items())
        ties = f", {self.ties} with another choice that is as probable to rounding" if self.ties else ""
        return f"{self.other_actions} of {self.observations:,} have another action{ties}; at most differ {numbers}"


def compare(policy: Policy, interface: Interface, run: Runner, moments: Iterable[Moment]) -> Agreement:
    """Compare an exported policy with the agent on `moments`, greedy and sampled.

    Batches have 1, 7 and 64 observations by turns.
    """
    agreement, comparison = Agreement(), _Comparison(policy, interface, run)
    waiting = iter(moments)
    for size in itertools.cycle(_BATCHES):
        batch = list(itertools.islice(waiting, size))
        if not batch:
            return agreement
        comparison.add(batch, agreement)
    raise AssertionError


class _Comparison:
    """An agent and an exported policy, side by side."""

    def __init__(self, policy: Policy, interface: Interface, run: Runner) -> None:
        self._policy, self._interface, self._run = policy, interface, run
        self._distribution = make_distribution(policy.spec.action)
        self._to_env, space = action_converter(policy.spec.action), policy.spec.action
        self._unpack = Unpacker(space) if space.parts else None
        leaves = zip(interface.actions, space.leaves, strict=True)
        self._choices = [port.name for port, (_, leaf) in leaves if leaf.kind != "box"]
        self._number = policy.new_memory().dtype

    def add(self, moments: list[Moment], agreement: Agreement) -> None:
        """Compare a batch and add the result."""
        uniform = np.stack([each.noise for each in moments])
        transformed = self._distribution.noise(torch.from_numpy(uniform)).numpy().astype(self._number)
        rows, memory = np.stack([each.obs for each in moments]), np.stack([each.memory for each in moments])
        is_wrong, is_tie = np.zeros((2, len(rows)), bool)
        for noise, drawn in ((np.zeros_like(transformed), None), (transformed, uniform)):
            inputs = split_rows(self._policy.spec.observation, self._interface, rows) | {NOISE: noise}
            expected = self._expected(rows, drawn, memory, inputs)
            if self._interface.has_memory:
                inputs |= {MEMORY: memory}
            found = self._run(inputs)
            for name, numbers in self._pairs(found, expected):
                agreement.largest[name] = max(agreement.largest.get(name, 0.0), _difference(*numbers))
            implied = self._implied(found["params"], noise) if self._choices else {}
            for name in self._choices:
                other = _any_entry(found[name] != expected[name])
                follows = ~_any_entry(found[name] != implied[name])
                is_wrong |= other & ~follows
                is_tie |= other & follows
        agreement.observations += len(rows)
        agreement.ties += int(is_tie.sum())
        agreement.other_actions += int(is_wrong.sum())

    def _expected(
        self, rows: NDArray[Any], uniform: NDArray[Any] | None, memory: NDArray[Any], inputs: dict[str, NDArray[Any]]
    ) -> dict[str, NDArray[Any]]:
        """Return the agent's own outputs."""
        after = memory.copy()
        actions = self._named(self._policy.act(rows, uniform, after))
        parts = [torch.from_numpy(inputs[port.name]) for port in self._interface.obs]
        with torch.no_grad():
            params = self._policy.module.compute(parts, torch.from_numpy(memory))[1]["params"].numpy()
        expected = actions | {"params": params, NEXT_MEMORY: after}
        if any(port.name == "value" for port in self._interface.outputs):
            expected["value"] = self._policy.value(rows, memory)
        return expected

    def _named(self, actions: Any) -> dict[str, NDArray[Any]]:
        """Return actions `[B, ...]`, as environments take them, by the names of their parts."""
        return {port.name: part_at(actions, port.path) for port in self._interface.actions}

    def _pairs(
        self, found: Mapping[str, NDArray[Any]], expected: Mapping[str, NDArray[Any]]
    ) -> Iterator[tuple[str, tuple[NDArray[Any], NDArray[Any]]]]:
        """Yield the outputs that are numbers: found and expected."""
        for port in self._interface.outputs:
            if port.name not in self._choices:
                yield port.name, (found[port.name], expected[port.name])

    def _implied(self, params: NDArray[Any], noise: NDArray[Any]) -> dict[str, NDArray[Any]]:
        """Return the actions that follow from `params`.

        Where two choices are as probable to rounding, it decides between them: neither is wrong.
        """
        drawn = self._distribution.sample(torch.from_numpy(params), torch.from_numpy(noise))
        actions = self._to_env(drawn.numpy())
        return self._named(actions if self._unpack is None else self._unpack.batch(actions))


def _any_entry(where: NDArray[np.bool_]) -> NDArray[np.bool_]:
    """Return for each row `[B, ...]` whether it has a true entry, `[B]`."""
    return np.asarray(where.reshape(len(where), -1).any(axis=1))


def _difference(found: NDArray[Any], expected: NDArray[Any]) -> float:
    """Return the largest difference, relative where `expected` is above 1; infinite for NaN."""
    if found.shape != expected.shape:
        return float("inf")
    wide = expected.astype(np.float64)
    with np.errstate(invalid="ignore", over="ignore"):
        difference = np.abs(found.astype(np.float64) - wide) / np.maximum(1, np.abs(wide))
    difference[found == expected] = 0  # infinities, too
    return float("inf") if np.isnan(difference).any() else float(difference.max(initial=0.0))
