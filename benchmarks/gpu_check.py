"""What works on a GPU, and how fast: within eight minutes on one card, a line for each thing.

    python -m benchmarks.gpu_check [PART ...] [--out FOLDER]

Each part is a process of its own, cut off after some time, so that nothing stops at the first failure. `make
gpu-check` runs all of them; what they print belongs into docs/gpu.md.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import shlex
import signal
import socket
import statistics
import subprocess
import sys
import tarfile
import tempfile
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import torch

from benchmarks.update import EPOCHS, ROWS_AT_LEAST, make_batch, update_of
from fabric_ppo.agents.make import make_agent
from fabric_ppo.config import Config
from fabric_ppo.envs.make import make_envs
from fabric_ppo.fast.captured_rollout import CapturedRollout
from fabric_ppo.fast.captured_step import CapturedStep
from fabric_ppo.fast.compiled_actor import ActorChoice
from fabric_ppo.fast.gradient_clip import GradientClip
from fabric_ppo.fast.loss_module import PPOLoss, make_optimizer
from fabric_ppo.ppo.batch import make_batch as batch_of
from fabric_ppo.ppo.schedules import coefficients
from fabric_ppo.ppo.update import ppo_update
from fabric_ppo.process.devices import count_gpus, gpu_name
from fabric_ppo.process.group import ALONE
from fabric_ppo.process.machine import machine, why_no_compiler
from fabric_ppo.rollouts.buffer import RolloutBuffer
from fabric_ppo.rollouts.collect import collect

_STARTED = time.monotonic()
ROOT = Path(__file__).parent.parent
DEVICE = torch.device("cuda", 0)
SMALL = shlex.split("--total-timesteps 32768 --num-envs 8 --per-rank-batch-size 256 --seed 1")
TINY = shlex.split("--total-timesteps 8192 --num-envs 4 --test-episodes 1")
CHEETAH = shlex.split(
    "--env-id HalfCheetah-v5 --num-envs 1 --num-steps 2048 --per-rank-batch-size 64 --activation-function tanh "
    "--normalize-observations --normalize-rewards --total-timesteps 12288 --test-episodes 1"
)
BREAKOUT = shlex.split(
    "--env-id ALE/Breakout-v5 --env-preset atari --env-backend async --num-envs 8 --num-steps 128 "
    "--per-rank-batch-size 256 --update-epochs 4 --total-timesteps 16384 --test-episodes 1"
)
TORCH, FABRIC, DECOUPLED = "train_torch.py", "train_fabric.py", "train_fabric_decoupled.py"


def the_machine(out: Path) -> None:
    """Card, libraries, processor."""
    print(f"PyTorch {torch.__version__}, Python {sys.version.split()[0]}; {machine()}")
    print(f"{count_gpus()} GPU: {gpu_name() if count_gpus() else 'none'}")
    print(f"torch.compile: {why_no_compiler() or 'has its compiler'}")


def the_tests(out: Path) -> None:
    """Gradients against those of the CPU, waiting, graphs, actors, tensor environments: tests/gpu."""
    words = [sys.executable, "-m", "pytest", "tests/gpu", "-rA", "-p", "no:cacheprovider", "--tb=short"]
    variables = os.environ | {"FABRIC_PPO_GPU": "1", "COLUMNS": "200", "CI": "1"}
    run_into(out / "tests.log", words, 105, variables)
    told = ("gradient, ", "an update waits", "FAILED", "ERROR", "E  ")
    for line in (out / "tests.log").read_text(errors="replace").splitlines():
        if line.startswith(told) or " passed" in line or " failed" in line:
            print(line[:170])


def launched(script: str, num_processes: int, accelerator: str = "cpu") -> list[str]:
    """Return the beginning of a command that starts a script in some processes."""
    if num_processes == 0:
        return [sys.executable, script]
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    if script == TORCH:
        torchrun = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--local-addr=127.0.0.1"]
        return [*torchrun, f"--nproc_per_node={num_processes}", script]
    launcher = [sys.executable, "-m", "lightning.fabric.cli", f"--accelerator={accelerator}"]
    return [*launcher, f"--devices={num_processes}", f"--main-port={port}", script]


def run_into(log: Path, words: list[str], limit: float, variables: dict[str, str] | None = None) -> int:
    """Run a command with its output in a file; return its status, 124 if it was killed (ranks end with it)."""
    with log.open("w") as into, subprocess.Popen(words, cwd=ROOT, stdout=into, stderr=into, env=variables) as process:
        try:
            return process.wait(limit)
        except subprocess.TimeoutExpired:
            process.kill()
            return 124


def file_of(name: str) -> str:
    """Return the name of a file or folder for a command's name."""
    return re.sub(r"[^\w.-]+", "-", name)


def command(out: Path, name: str, words: list[str], limit: float = 60) -> dict[str, float]:
    """Run a training into a folder of that name, and print how it ended; return its summary, empty without one."""
    started, log, folder = time.perf_counter(), out / f"{file_of(name)}.log", out / file_of(name)
    code = run_into(log, [*words, "--run-dir", str(folder)], limit)
    seconds, path = time.perf_counter() - started, folder / "summary.json"
    summary = json.loads(path.read_text()) if path.exists() else {}
    speed = f"{summary['steps_per_second']:,.0f} transitions/s" if summary else "no summary"
    text = log.read_text(errors="replace")
    notes = [line for line in text.splitlines() if "CUDA graph" in line or line.startswith("warning")]
    failed = [] if code == 0 else text.strip().splitlines()[-25:]
    print("\n".join([f"{name:34} status {code}, {seconds:5.1f} s, {speed}", *notes[:3], *failed]), flush=True)
    return summary


def together(out: Path, commands: dict[str, list[str]], limit: float = 60) -> None:
    """Run commands four at a time, where their speed does not matter."""
    with ThreadPoolExecutor(4) as pool:
        list(pool.map(lambda name: command(out, name, commands[name], limit), commands))


def same_bits(out: Path, one: str, other: str) -> str:
    """Return whether two runs have ended with the same policy."""
    files = [out / file_of(name) / "policy.safetensors" for name in (one, other)]
    if not all(path.exists() for path in files):
        return "not compared"
    from safetensors.torch import load_file

    first, second = (load_file(path) for path in files)
    return "the same bits" if all(torch.equal(first[name], second[name]) for name in first) else "DIFFERENT"


def the_scripts(out: Path) -> None:
    """The scripts: twice the same bits, PyTorch's and Fabric's the same, a kill and a resume, --compile."""
    command(out, "cpu", [*launched(TORCH, 0), *SMALL])
    command(out, "cuda", [*launched(TORCH, 0), "--cuda", *SMALL])
    kept = [*SMALL, "--checkpoint-every", "2"]
    killed = [*launched(TORCH, 0), "--cuda", *kept, "--run-dir", str(out / "resumed")]
    with (
        (out / "killed.log").open("w") as into,
        subprocess.Popen(killed, cwd=ROOT, stdout=into, stderr=into) as process,
    ):
        end = time.monotonic() + 60
        while not list((out / "resumed").glob("checkpoints/update_*.ckpt")) and time.monotonic() < end:
            if process.poll() is not None:
                break
            time.sleep(0.05)
        process.kill()
    commands = {
        "cuda-again": [*launched(TORCH, 0), "--cuda", *SMALL],
        "fabric-cuda": [*launched(FABRIC, 1, "cuda"), *SMALL],
        "resumed": [*launched(TORCH, 0), "--cuda", *kept, "--resume"],
    }
    together(out, commands)
    for other in commands:
        print(f"cuda and {other}: {same_bits(out, 'cuda', other)}", flush=True)
    has_resumed = "resumed after update" in (out / "resumed.log").read_text(errors="replace")
    print("the killed run was resumed" if has_resumed else "the killed run BEGAN ANEW", flush=True)
    compiled = {
        "compile": [*launched(TORCH, 0), "--cuda", "--compile", *SMALL],
        "compile-fabric": [*launched(FABRIC, 1, "cuda"), "--compile", *SMALL],
    }
    together(out, compiled, 90)
    print(f"compile and compile-fabric: {same_bits(out, *compiled)}", flush=True)


def the_architectures(out: Path) -> None:
    """Several processes on what GPUs there are: ranks, player and trainers."""
    commands = {
        "two ranks": [*launched(TORCH, 2), "--cuda", *TINY],
        "two ranks, graphs": [*launched(TORCH, 2), "--cuda", "--compile", *TINY],  # with nccl on two GPUs
        "decoupled, 1 trainer": [*launched(DECOUPLED, 2), "--cuda", *TINY],
        "decoupled, 2 trainers": [*launched(DECOUPLED, 3), "--cuda", *TINY],
        "decoupled, player on GPU": [*launched(DECOUPLED, 2), "--cuda", "--player-on-gpu", *TINY],
        "decoupled, all on GPU, 2 trainers": [*launched(DECOUPLED, 3), "--cuda", "--player-on-gpu", *TINY],
        "recurrent": [*launched(TORCH, 0), "--cuda", "--recurrent", "lstm", *TINY],
        "continuous": [*launched(TORCH, 0), "--cuda", "--env-id", "Pendulum-v1", *TINY],
        "tensor environments": [*launched(TORCH, 0), "--cuda", "--env-id", "tensor/CartPole-v1", *TINY],
        "tensor environments, graphs": [
            *launched(TORCH, 0),
            "--cuda",
            "--compile",
            "--env-id",
            "tensor/CartPole-v1",
            *TINY,
        ],
        "fabric, images, workers": [*launched(FABRIC, 1, "cuda"), *BREAKOUT, "--total-timesteps", "2048"],
    }
    together(out, commands, 120)


def seconds_of(function: Callable[[], object], rounds: int) -> float:
    """Return the median of the seconds of some calls, after two that warm up."""
    taken = []
    for _ in range(rounds + 2):
        started = time.perf_counter()
        function()
        torch.cuda.synchronize()
        taken.append(time.perf_counter() - started)
    return statistics.median(taken[2:])


def the_updates(out: Path) -> None:
    """Samples a second of an update of the default agent: on the CPU, on the GPU, and as CUDA graphs."""
    print(f"{'rows':>6} | {'CPU':>12} | {'GPU':>12} | {'CUDA graphs':>12} samples/s")
    for rows in (64, 256, 1024, 4096, 16384, 65536):
        count = max(2 * rows, ROWS_AT_LEAST)
        config = Config(per_rank_batch_size=rows, update_epochs=EPOCHS, learning_rate=1e-5)
        batch = make_batch(count)
        there = replace(batch, rows=type(batch.rows)(*(each.to(DEVICE) for each in batch.rows)))
        ways = [
            update_of("ours", config, batch),
            update_of("ours", config, there),
            update_of("ours", replace(config, compile=True), there),
        ]
        speeds = [EPOCHS * count / seconds_of(way, 5 if rows < 4096 else 9) for way in ways]
        print(f"{rows:6} | " + " | ".join(f"{each:12,.0f}" for each in speeds), flush=True)


def trainings(num_envs: int, compiles: bool) -> Iterator[tuple[Callable[[], object], int]]:
    """Yield a rollout in tensor CartPole and then a whole update, each with its transitions."""
    config = Config(
        env_id="tensor/CartPole-v1",
        env_backend="vector",
        num_envs=num_envs,
        num_steps=32,
        per_rank_batch_size=max(num_envs, 2048),
        update_epochs=4,
        compile=compiles,
    )
    envs = make_envs(config, 0, 1, "", str(DEVICE))
    agent = make_agent(envs.spec, config)
    module = PPOLoss(agent, config).to(DEVICE)
    optimizer, clip = make_optimizer(module, config), GradientClip(module, config.max_grad_norm)

    def step(loss: torch.Tensor) -> torch.Tensor:
        optimizer.zero_grad()
        loss.backward()
        norm = clip()
        optimizer.step()
        return norm

    captured = CapturedStep(module, step, optimizer, config, ALONE)
    buffer = RolloutBuffer(envs, agent, config.num_steps, ActorChoice(agent), CapturedRollout(config))
    numbers = iter(range(10**9))
    yield lambda: collect(agent, buffer, 1, next(numbers)), config.num_steps * num_envs

    def update() -> None:
        number = next(numbers)
        batch = batch_of(collect(agent, buffer, 1, number), config, ALONE, number, DEVICE)
        ppo_update(captured.loss, batch, captured.step, coefficients(config, 0, 1), config)

    yield update, config.num_steps * num_envs


def the_tensors(out: Path) -> None:
    """Transitions a second of tensor CartPole, environments and agent on the GPU."""
    heads = ("rollout", "training", "one graph", "with graphs")
    print(f"{'envs':>6} | " + " | ".join(f"{head:>12}" for head in heads) + " transitions/s")
    for num_envs in (1024, 4096, 16384, 65536):
        ways = [*trainings(num_envs, False), *trainings(num_envs, True)]
        speeds = [count / seconds_of(way, 4) for way, count in ways]
        print(f"{num_envs:6} | " + " | ".join(f"{each:12,.0f}" for each in speeds), flush=True)


def the_works(out: Path) -> None:
    """LeanRL's work, of which it publishes 1,774 and 6,809 steps/s on a node with an H100; player and trainer."""
    command(out, "HalfCheetah, CPU", [*launched(TORCH, 0), *CHEETAH])
    command(out, "HalfCheetah, GPU", [*launched(TORCH, 0), "--cuda", *CHEETAH])
    command(out, "HalfCheetah, CUDA graphs", [*launched(TORCH, 0), "--cuda", "--compile", *CHEETAH], 90)
    command(out, "Breakout, GPU", [*launched(TORCH, 0), "--cuda", *BREAKOUT])
    command(out, "Breakout, CUDA graphs", [*launched(TORCH, 0), "--cuda", "--compile", *BREAKOUT], 90)
    command(out, "Breakout, player and trainer", [*launched(DECOUPLED, 2), "--cuda", *BREAKOUT])
    command(out, "Breakout, --overlap", [*launched(DECOUPLED, 2), "--cuda", "--overlap", *BREAKOUT])


PARTS: dict[str, tuple[Callable[[Path], None], float]] = {
    "machine": (the_machine, 30),
    "tests": (the_tests, 110),
    "scripts": (the_scripts, 120),
    "architectures": (the_architectures, 90),
    "updates": (the_updates, 50),
    "tensors": (the_tensors, 60),
    "works": (the_works, 150),
}
"""Name -> what it does, and the seconds after which it is cut off."""
BUDGET = 430.0
"""Seconds for all parts together."""


def run_all(names: list[str], out: Path) -> None:
    """Run each part in a process of its own, as long as there is time; logs are in `out/logs.tgz`."""
    variables = os.environ | {"PYTHONUNBUFFERED": "1"}
    with tempfile.TemporaryDirectory() as folder:
        for name in names:
            part, limit = PARTS[name]
            left = BUDGET - (time.monotonic() - _STARTED)
            print(f"\n## {name}: {(part.__doc__ or '').splitlines()[0]}", flush=True)
            if left < 5:
                print("no time was left for it", flush=True)
                continue
            begun = time.monotonic()
            words = [sys.executable, "-m", "benchmarks.gpu_check", "--here", name, "--out", folder]
            with subprocess.Popen(words, cwd=ROOT, env=variables, start_new_session=True) as process:
                try:
                    code = process.wait(min(limit, left))
                except subprocess.TimeoutExpired:
                    os.killpg(process.pid, signal.SIGKILL)
                    code = 124
            ended = "" if code == 0 else f", status {code}"
            print(f"({time.monotonic() - begun:.0f} s{ended})", flush=True)
            with tarfile.open(out / "logs.tgz", "w:gz") as logs:
                for log in sorted(Path(folder).glob("*.log")):
                    logs.add(log, log.name)


def main() -> None:
    """Run the parts that are named, or all of them."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("parts", nargs="*", help=f"of {', '.join(PARTS)}")
    parser.add_argument("--out", type=Path, help="folder for logs.tgz (logs/gpu-check)")
    parser.add_argument("--here", choices=PARTS, help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.here:
        PARTS[given.here][0](given.out)
        return
    if odd := sorted(set(given.parts) - PARTS.keys()):
        parser.error(f"{odd[0]}: one of {', '.join(PARTS)} is expected")
    if not count_gpus():
        parser.error("no GPU is to be seen here, and there is nothing to check")
    out = given.out or Path("logs/gpu-check")
    out.mkdir(parents=True, exist_ok=True)
    run_all(given.parts or list(PARTS), out)


if __name__ == "__main__":
    main()
