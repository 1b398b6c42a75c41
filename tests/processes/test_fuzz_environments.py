"""Whatever an environment is like: the run trains on what it returns, or one line names its fault.

`FABRIC_PPO_FUZZ` is how many are drawn, 1 for the full figure (`make fuzz`); a small part, always the same, is part of
the tests. `FABRIC_PPO_FUZZ_SEED` is the first seed, which a failure names.
"""

from __future__ import annotations

import collections
import json
import math
import multiprocessing
import os
import pickle
import random
import re
import secrets
import shutil
import sys
import time
import traceback
from collections.abc import Callable
from dataclasses import dataclass
from multiprocessing import connection
from pathlib import Path
from typing import Any

import gymnasium
import numpy as np
from gymnasium import spaces
from safetensors.torch import load_file

from fabric_ppo.agents.policy import load_agent
from fabric_ppo.agents.policy_file import POLICY_FILE
from fabric_ppo.config import SCRIPT_CONFIGS
from fabric_ppo.process.script import run_script
from fabric_ppo.run.resolve import resolve
from fabric_ppo.seeding import episode_seed, evaluation_seed
from fabric_ppo.tools.flags import parse_flags
from tests.fixtures.drawn_envs import FLAGS, REWARDS, TEST_SEEDS, Drawing, Drawn, drawing_of, env_id
from tests.fixtures.drawn_spaces import is_wide, leaves, stored
from tests.fixtures.launching import SCRIPTS
from tests.fixtures.processes import PATIENCE, kill_tree

SHARE = float(os.environ.get("FABRIC_PPO_FUZZ", "0.05"))
ENVIRONMENTS = 800
AT_ONCE = 2
STEPS, SEED = 8, 5
SMALL = ("--num-steps", str(STEPS), "--update-epochs", "1", "--per-rank-batch-size", "8", "--hidden-sizes", "4")
SMALL += (
    "--timeout",
    "1e6",
    "--env-timeout",
    "1e6",
    "--num-threads",
    "1",
    "--checkpoint-every",
    "1",
    "--action-bounds",
    "clip",
    "--seed",
    str(SEED),
)
FAULT = re.compile(
    r"error: rank 0: Drawn\d+-v0 "
    r"(environment \d+, episode seed (?P<seed>\d+)|test episode \d+, seed (?P<test>\d+)), step (?P<step>\d+): .*\S"
)


@dataclass(frozen=True)
class Options:
    """Flags of a run with a drawn environment."""

    num_envs: int
    backend: str
    test_episodes: int
    step_limit: int
    records: bool
    resumes: bool

    def flags(self, seed: int) -> list[str]:
        """Return them as words."""
        words = [*SMALL, "--env-id", env_id(seed), "--num-envs", str(self.num_envs), "--env-backend", self.backend]
        words += ["--total-timesteps", str(2 * STEPS * self.num_envs), "--test-episodes", str(self.test_episodes)]
        words += ["--test-step-limit", str(self.step_limit)]
        return words + ["--capture-video"] * self.records


def options_of(seed: int) -> Options:
    """Draw the flags of the environment that is drawn from `seed`."""
    rng = random.Random(f"options {seed}")
    return Options(
        num_envs=rng.randint(1, 2),
        backend=rng.choice(["sync", "sync", "sync", "async"]),
        test_episodes=rng.randint(1, 2),
        step_limit=rng.choice([5, 30]),
        records=rng.random() < 0.1,
        resumes=rng.random() < 0.4,
    )


# -- what is to be expected


def expected_outcomes(drawing: Drawing, options: Options) -> set[str]:
    """Return how a run with an environment may end."""
    odd = drawing.odd
    place, _, _ = odd.get("error", "").partition(": ")
    if "observation space" in odd or "action space" in odd or place in ("constructor", "space"):
        return {"refused"}
    if options.records and odd.get("metadata") in ("none", "empty", "no modes", "human", "list"):
        return {"refused"}
    expected = {"trains"}
    if fault_steps(drawing):
        expected = {"fault"}
    if (place.endswith(" constructor")) or odd.get("metadata") == "word":
        expected |= {"trains", "fault", "refused"}
    is_odd_number = any(is_wide(space) for _, space in leaves(drawing.observation)) and odd.get("held")
    if is_odd_number or (odd.get("setting") == "device" and "tensor" in odd.values()):
        expected |= {"fault"}
    if options.records and (place == "render" or "picture" in odd or "metadata" in odd):
        expected |= {"unwritten"}
    if odd.get("reward") == "large" or any(is_wide(space) for _, space in leaves(drawing.observation)):
        expected |= {"diverged"}
    return expected


def fault_steps(drawing: Drawing) -> set[int]:
    """Return the steps of an episode in which a fault comes; none for an environment without."""
    odd = drawing.odd
    place, _, _ = odd.get("error", "").partition(": ")
    steps = set()
    if place == "reset" or odd.get("answer") == "reset alone":
        steps.add(0)
    is_fault = "unheld" in odd or place == "step" or odd.get("structure") in ("missing", "no dict")
    is_fault |= odd.get("answer") in ("four", "none")
    is_fault |= "reward" in odd and REWARDS[odd["reward"]][1] == "fault"
    is_fault |= "flag" in odd and FLAGS[odd["flag"]][1] == "fault"
    return steps | ({drawing.at} if is_fault else set())


# -- a run in a process of its own


def start_in_fork(function: Callable[..., None], said: Path, *args: Any) -> multiprocessing.process.BaseProcess:
    """Start a forked process that calls a function and writes what it prints into a file."""

    def work() -> None:
        with said.open("ab", buffering=0) as file:
            os.dup2(file.fileno(), 1)
            os.dup2(file.fileno(), 2)
        for name, each in {"stdout": 1, "stderr": 2}.items():
            setattr(sys, name, open(each, "w", errors="backslashreplace", closefd=False))  # noqa: SIM115
        status: Any = 1
        try:
            function(*args)
            status = 0
        except SystemExit as stop:
            status = stop.code
        except BaseException:
            os.write(2, traceback.format_exc().encode(errors="replace"))
        os._exit(status if isinstance(status, int) else 1)

    process = multiprocessing.get_context("fork").Process(target=work)
    process.start()
    return process


def train(seed: int, folder: Path, *flags: str) -> None:
    """Run the script as its own process would, and keep what was collected."""
    script, collected = SCRIPTS["torch"], []
    collect = script.collect

    def kept(*args: Any, **kwargs: Any) -> Any:
        rollout = collect(*args, **kwargs)
        names = ("obs", "actions", "rewards", "terminated", "truncated")
        collected.append({name: getattr(rollout, name).numpy().copy() for name in names})
        (folder / "collected").write_bytes(pickle.dumps(collected))
        return rollout

    script.collect = kept
    words = [*options_of(seed).flags(seed), "--run-dir", str(folder / "run"), *flags]
    run_script(lambda args: script.main(resolve(parse_flags(SCRIPT_CONFIGS["torch"], args))), words)


def outcome(status: int | None, said: str) -> str:
    """Return how a run ended; a text that is no word where it should not end so."""
    errors = [line for line in said.splitlines() if line.startswith("error: ")]
    before, _, after = said.partition("error: ")
    if "Traceback" in before or "Exception ignored" in said or re.search(r"fabric_ppo/\S+:\d+: \w*Warning", said):
        return f"a traceback or a warning: {said[-3000:]}"
    if status in (0, 3) and not errors:
        return "trains" if status == 0 else "unwritten"
    if len(errors) == 1 and status == 2 and "Traceback" not in after:
        return "refused"
    if (
        len(errors) == 1
        and status == 1
        and re.match(r"error: rank 0: .*not finite", errors[0])
        and "Drawn" not in after
    ):
        return "diverged"
    if len(errors) == 1 and status == 1 and (FAULT.match(errors[0]) or "cannot be made" in errors[0]):
        return "fault"
    return f"status {status}: {said[-3000:]}"


# -- what a run has to show


def converted(space: Any, action: Any) -> Any:
    """Return a stored action as an environment takes it; one of parts has their entries one after the other."""
    if isinstance(space, (spaces.Dict, spaces.Tuple)):
        parts = dict(space.spaces.items() if isinstance(space, spaces.Dict) else enumerate(space.spaces))
        sizes = [sum(math.prod(leaf.shape) for _, leaf in leaves(part)) for part in parts.values()]
        columns = np.split(action, np.cumsum(sizes)[:-1])
        made = {key: converted(part, each) for (key, part), each in zip(parts.items(), columns, strict=True)}
        return made if isinstance(space, spaces.Dict) else tuple(made.values())
    if isinstance(space, spaces.Discrete):
        return int(action.item()) + int(space.start)
    if isinstance(space, spaces.MultiDiscrete):
        return (action.reshape(space.shape) + space.start).astype(space.dtype)
    if isinstance(space, spaces.Box):
        return np.clip(action.reshape(space.shape).astype(space.dtype), space.low, space.high)
    return action.reshape(space.shape).astype(space.dtype)


def number(value: Any) -> float:
    """Return a reward or a flag, as environments return them, as a number."""
    return float(value.item()) if hasattr(value, "item") else float(value or 0)


def plain_env(seed: int) -> Any:
    """Make the environment by Gymnasium alone."""
    Drawn.made = 0
    return gymnasium.make(env_id(seed), disable_env_checker=True)


def assert_collected(seed: int, folder: Path) -> None:
    """Compare rollouts and the mean return with a plain loop that has the same seeds and actions."""
    drawing, num_envs = drawing_of(seed), options_of(seed).num_envs
    rollouts = pickle.loads((folder / "collected").read_bytes())
    both = {name: np.concatenate([each[name] for each in rollouts]) for name in rollouts[0]}
    returns = []
    for index in range(num_envs):
        env, episode, ret = plain_env(seed), 0, 0.0
        obs, _ = env.reset(seed=episode_seed(SEED, index, 0, num_envs))
        for t, action in enumerate(both["actions"][:, index]):
            assert both["obs"][t, index].tobytes() == stored(drawing.observation, obs), (index, t)
            obs, reward, *flags, _ = env.step(converted(drawing.action, action))
            ended = [bool(number(each)) for each in flags]
            assert both["rewards"][t, index] == np.float32(number(reward)), (index, t)
            assert [both[name][t, index] for name in ("terminated", "truncated")] == ended, (index, t)
            ret += float(np.float32(number(reward)))
            if any(ended):
                returns, ret, episode = [*returns, ret], 0.0, episode + 1
                obs, _ = env.reset(seed=episode_seed(SEED, index, episode, num_envs))
    mean = json.loads((folder / "run/summary.json").read_text())["train_return_mean"]
    assert mean is None if not returns else math.isclose(mean, np.mean(returns), rel_tol=1e-6), (mean, returns)


def assert_tested(seed: int, folder: Path) -> None:
    """Compare the test's returns with a plain loop in which the policy acts."""
    policy, drawing, options = load_agent(folder / "run"), drawing_of(seed), options_of(seed)
    tested = json.loads((folder / "run/summary.json").read_text())["test"]
    assert all(tensor.isfinite().all() for tensor in load_file(folder / "run" / POLICY_FILE).values())
    for episode, expected in enumerate(tested["returns"]):
        env, ret = plain_env(seed), 0.0
        obs, _ = env.reset(seed=evaluation_seed(SEED, episode))
        for _ in range(options.step_limit):
            # a list is a batch
            action = policy.act(policy.pack(obs) if isinstance(obs, list) else obs)
            is_number = not isinstance(action, (dict, tuple)) and action.ndim == 0
            obs, reward, *flags, _ = env.step(action.item() if is_number else action)
            ret += number(reward)
            if any(number(each) for each in flags):
                break
        # an environment that counts its episodes begins another one here
        assert math.isclose(ret, expected, rel_tol=1e-6) or "memory" in drawing.odd, (ret, expected)
    assert len(tested["returns"]) == options.test_episodes


def assert_run(seed: int, folder: Path) -> None:
    """Check all that a finished run has left."""
    assert_tested(seed, folder)
    assert_collected(seed, folder)


def wrong_fault(drawing: Drawing, said: str) -> str:
    """Return what is wrong with a fault's text; empty for nothing."""
    line = next(line for line in said.splitlines() if line.startswith("error: "))
    found = FAULT.match(line)
    if found is None:
        return "" if " constructor" in drawing.odd.get("error", "") else f"names no step: {line}"
    steps = fault_steps(drawing)
    if steps and int(found["step"]) != min(steps):
        return f"another step than {min(steps)}: {line}"
    if drawing.in_tests and steps and int(found["test"] or 0) < TEST_SEEDS:
        return f"not in a test: {line}"
    return ""


def wrong_resume(drawing: Drawing, folder: Path, status: int | None, said: str) -> str:
    """Return what is wrong with a resumed run; empty for nothing."""
    if outcome(status, said) != "trains":
        return f"resumed: {said[-3000:]}"
    is_exact = json.loads((folder / "resumed/run/summary.json").read_text())["exact_resume"]
    ours, theirs = (folder / each / POLICY_FILE for each in ("resumed/run", "run"))
    if is_exact and ours.read_bytes() != theirs.read_bytes():
        return "resumed with other bits"
    if not is_exact and "memory" not in drawing.odd:
        return f"resumed, not exactly: {said}"
    return ""


class Case:
    """A drawn environment on its way: trained, checked, resumed, each in a process of its own."""

    def __init__(self, seed: int, folder: Path) -> None:
        """Begin to train."""
        self.seed, self.outcome, self.wrong = seed, "", ""
        self._folder, self._drawing, self._options = folder / str(seed), drawing_of(seed), options_of(seed)
        self._folder.mkdir()
        self._stage = self._trained
        self._begin(train)

    def _begin(self, function: Callable[..., None], *flags: str, inside: str = "") -> None:
        folder = self._folder / inside
        self._said = folder / f"{function.__name__}.txt"
        self._deadline = time.monotonic() + PATIENCE
        self.process = start_in_fork(function, self._said, self.seed, folder, *flags)

    def goes_on(self) -> bool:
        """Look at a process that ended; return True if another one follows."""
        self.process.join(max(0.0, self._deadline - time.monotonic()))
        if self.process.exitcode is None:
            kill_tree(self.process.pid or 0)
            self.wrong = "no end"
            return False
        said = self._said.read_text(errors="replace") if self._said.exists() else ""
        # what an environment prints without ending its line may come before a line of ours
        return self._stage(self.process.exitcode, said.replace("no end", ""))

    def _trained(self, status: int, said: str) -> bool:
        self.outcome = outcome(status, said)
        if self.outcome not in expected_outcomes(self._drawing, self._options):
            self.wrong = f"{self.outcome} instead of {expected_outcomes(self._drawing, self._options)}\n{said[-3000:]}"
        elif self.outcome == "fault":
            self.wrong = wrong_fault(self._drawing, said)
        elif self.outcome == "refused" and (self._folder / "run").exists():
            self.wrong = "a folder of a run that was refused"
        if self.wrong or self.outcome not in ("trains", "unwritten"):
            return False
        self._stage = self._checked
        self._begin(assert_run)
        return True

    def _checked(self, status: int, said: str) -> bool:
        self.wrong = said[-3000:] if status else ""
        # a third environment cannot be made, as the drawing says
        if self.wrong or not self._options.resumes or "constructor" in self._drawing.odd.get("error", ""):
            return False
        checkpoints = self._folder / "resumed/run/checkpoints"
        checkpoints.mkdir(parents=True)
        shutil.copy(self._folder / "run/checkpoints/update_1.ckpt", checkpoints)
        self._stage = self._resumed
        self._begin(train, "--resume", "--no-capture-video", inside="resumed")
        return True

    def _resumed(self, status: int, said: str) -> bool:
        self.wrong = wrong_resume(self._drawing, self._folder, status, said)
        return False

    def clear(self) -> None:
        """Remove its files."""
        shutil.rmtree(self._folder, ignore_errors=True)


def test_any_environment_trains_or_is_named(tmp_path):
    first = int(os.environ.get("FABRIC_PPO_FUZZ_SEED", "0" if SHARE < 1 else str(secrets.randbelow(10**9))))
    waiting = list(range(first, first + math.ceil(ENVIRONMENTS * SHARE)))
    running: list[Case] = []
    ended: list[Case] = []
    started = time.monotonic()
    while waiting or running:
        while waiting and len(running) < AT_ONCE:
            running.append(Case(waiting.pop(0), tmp_path))
        connection.wait([case.process.sentinel for case in running], PATIENCE)
        for case in [case for case in running if not case.process.is_alive()] or running[:1]:
            if not case.goes_on():
                running.remove(case)
                ended.append(case)
                case.clear()
    counts = collections.Counter("wrong" if case.wrong else case.outcome for case in ended)
    print(f"\n{len(ended)} environments from seed {first} in {time.monotonic() - started:.0f} s: {dict(counts)}")
    wrong = [
        f"seed {case.seed}, {drawing_of(case.seed)}, {options_of(case.seed)}: {case.wrong}"
        for case in ended
        if case.wrong
    ]
    assert not wrong, "\n\n".join([f"{len(wrong)} of {len(ended)}:", *wrong[:20]])
