"""The same computations on a GPU as on the CPU. Where no GPU is to be seen, both are the CPU's, so that the tests work.

`make gpu-check` runs them on a GPU, in a process of its own: to all other tests GPUs are invisible, for they fork.
"""

from __future__ import annotations

import copy
import dataclasses
import functools

import numpy as np
import pytest
import torch
from torch.nn.parallel import DistributedDataParallel

from fabric_ppo.agents.make import make_agent
from fabric_ppo.agents.policy import Policy
from fabric_ppo.config import Config
from fabric_ppo.envs.ids import TENSOR_ENVS
from fabric_ppo.envs.make import make_envs
from fabric_ppo.envs.spaces import SpaceSpec
from fabric_ppo.fast.captured_rollout import CapturedRollout
from fabric_ppo.fast.captured_step import CapturedStep, recordable
from fabric_ppo.fast.compiled_actor import ActorChoice, CompiledActor
from fabric_ppo.fast.cuda_graphs import release_graphs
from fabric_ppo.fast.flat_weights import FlatWeights
from fabric_ppo.fast.loss_module import PPOLoss, make_optimizer, plain_loss
from fabric_ppo.ppo.batch import Batch, Rows, make_batch
from fabric_ppo.ppo.update import ppo_update, run_epochs
from fabric_ppo.process.group import ALONE
from fabric_ppo.process.packets import move_together
from fabric_ppo.rollouts.actor import Actor
from fabric_ppo.rollouts.buffer import RolloutBuffer
from fabric_ppo.rollouts.collect import collect
from fabric_ppo.rollouts.stepping import step_tensors
from fabric_ppo.run.snapshot import Copies
from tests.fixtures.agents import build_acting_agent, build_agent, masked_agent
from tests.fixtures.recurrent import make_recurrent, recurrent_config
from tests.fixtures.rollouts import rollouts
from tests.fixtures.rows import make_rows
from tests.fixtures.spaces import ACTIONS, BOX, observe
from tests.fixtures.toy_envs import toy_env
from tests.fixtures.updates import CONFIG, coefs_of, make_step

pytestmark = pytest.mark.gpu
DEVICE = torch.device("cuda", 0) if torch.cuda.is_available() else torch.device("cpu")
needs_gpu = pytest.mark.skipif(DEVICE.type == "cpu", reason="there is no GPU")
COEFS = coefs_of(dataclasses.replace(CONFIG, clip_vloss=True))
IMAGES = SpaceSpec("box", (3, 44, 44), "uint8")
NETWORKS = {
    "apart": {},
    "trunk": {"shared_trunk": True},
    "normalized": {"normalize_observations": True},
    "norm": {"layer_norm": True},
}


@pytest.fixture(autouse=True)
def _settings():
    """Put back what a run sets for its process."""
    yield
    torch.set_deterministic_debug_mode("default")


def on_device(rows):
    return Rows(*move_together(list(rows), DEVICE))


def masked_rows():
    """An agent with masks, and rows of its masked actions."""
    agent = masked_agent()[1].double()
    generator = np.random.default_rng(0)
    masks = generator.integers(0, 2, (24, 6)).astype(np.int8)
    masks[:, 2] = 1
    numbers = generator.normal(size=(24, 3)).astype(np.float32).clip(-1, 1)
    pack = Policy(agent).pack
    obs = [pack({"action_mask": mask, "observation": number}) for mask, number in zip(masks, numbers, strict=True)]
    rows = make_rows(build_agent(ACTIONS["discrete"]), 24, 0.1)
    return agent, rows._replace(obs=torch.from_numpy(np.stack(obs)), actions=torch.full((24,), 2))


def recurrent_rows(kind):
    """A recurrent agent, and whole sequences of its rows."""
    config = recurrent_config(kind, env_id=toy_env(length=4))
    envs, agent = make_recurrent(config)
    (rollout,) = rollouts(envs, agent, config.num_steps, 1, seed=config.seed)
    envs.close()
    return agent, make_batch(rollout, config, ALONE, 0, torch.device("cpu")).rows


def plain_rows(action="discrete", **options):
    agent = build_agent(ACTIONS[action], **options)
    return agent, make_rows(agent, 24, 0.1, uneven=True)


CASES = {
    f"{action}, {name}": (plain_rows, (action,), options) for action in ACTIONS for name, options in NETWORKS.items()
}
CASES |= {
    "std of the state": (plain_rows, ("box",), {"state_dependent_std": True}),
    "masks": (masked_rows, (), {}),
    "lstm": (recurrent_rows, ("lstm",), {}),
    "gru": (recurrent_rows, ("gru",), {}),
    "images": (plain_rows, ("discrete",), {"observation": IMAGES, "encoder": "nature"}),
}


def gradient(agent, rows, compute):
    """The loss of rows, and the gradient of all weights."""
    module = compute(agent)
    loss = module(rows, COEFS).loss
    (slopes,) = torch.autograd.grad(loss, module.weights.flat)
    return torch.cat([loss.detach().view(1), slopes]).cpu().double()


class Plain:
    """PPO's loss as it is written, on the CPU."""

    def __init__(self, agent):
        self.weights = FlatWeights(agent)

    def __call__(self, rows, coefs):
        return plain_loss(self.weights, rows, coefs)


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
def test_a_gradient_is_that_of_the_cpu(case, dtype):
    make, given, options = CASES[case]
    agent, rows = make(*given, **options)
    rows = Rows(*(each.to(dtype) if each.dtype == torch.float64 and each is not rows.obs else each for each in rows))
    agent = agent.to(dtype)
    there = copy.deepcopy(agent)
    expected = gradient(agent, rows, Plain)
    found = gradient(there, on_device(rows), lambda each: PPOLoss(each, CONFIG).to(DEVICE))
    # convolutions in float32 take TF32 on a GPU, whose products have ten bits, one after the other
    most = {torch.float64: 1e-12, torch.float32: 5e-3 if case == "images" else 1e-5}[dtype]
    error = (found - expected).norm() / expected.norm()
    print(f"gradient, {case}, {str(dtype).removeprefix('torch.')}: {error:.1e}")
    assert error <= most


def training(kind="discrete", **flags):
    """A loss on the device, with rows, and everything that an update takes."""
    config = dataclasses.replace(CONFIG, **flags)
    agent = build_agent(ACTIONS[kind], dtype=torch.float32)
    # rows are those of a float64 agent
    rows = make_rows(build_agent(ACTIONS[kind]), 30, 0.1)
    rows = rows._replace(**{name: getattr(rows, name).float() for name in rows._fields[2:-1]})
    module = PPOLoss(agent, config).to(DEVICE)
    return config, agent, module, Batch(on_device(rows), 0, 1, config.seed, 0)


@needs_gpu
@pytest.mark.parametrize("kind", ACTIONS)
def test_nothing_waits_for_the_gpu_within_the_epochs(kind):
    config, agent, module, batch = training(kind)
    step = make_step(agent, module, config)
    run_epochs(module, batch, step, COEFS, config)  # libraries may wait once
    torch.cuda.set_sync_debug_mode("error")
    try:
        run_epochs(module, batch, step, COEFS, config)
    finally:
        torch.cuda.set_sync_debug_mode("default")


@pytest.mark.parametrize("kind", ACTIONS)
def test_a_graph_takes_the_steps_that_its_kernels_take(kind, monkeypatch, capfd):
    """The same bits, with a learning rate that changes."""
    ends = []
    for warm_up in (10**9, 3):
        monkeypatch.setattr("fabric_ppo.fast.captured_step._WARM_UP", warm_up)
        config, agent, module, batch = training(kind, compile=True)
        optimizer = make_optimizer(module, config)
        step = make_step(agent, module, config, optimizer)

        captured = CapturedStep(module, step, optimizer, config, ALONE)
        for update in range(4):
            optimizer.param_groups[0]["lr"] = 0.01 / (1 + update)
            stats = ppo_update(captured.loss, batch, captured.step, COEFS, config)
        ends.append((module.weights.flat.detach().cpu(), stats.grad_norm, stats.approx_kl))
        del agent
    said = capfd.readouterr()
    assert "not one CUDA graph" not in said.out + said.err
    assert torch.equal(ends[0][0], ends[1][0])
    assert ends[0][1:] == ends[1][1:]


@needs_gpu
def test_a_graph_holds_the_average_of_ranks_by_nccl(tmp_path, capfd):
    """Of one rank, for nccl takes no two on one GPU: the same weights as with DDP's own average."""
    torch.cuda.set_device(DEVICE)
    torch.distributed.init_process_group("nccl", init_method=f"file://{tmp_path}/store", rank=0, world_size=1)
    ends = []
    try:
        for compiles in (False, True):
            config, agent, module, batch = training("box", compile=compiles)
            with recordable(DEVICE, config):
                ddp = DistributedDataParallel(module, device_ids=[DEVICE])
            optimizer = make_optimizer(module, config)
            step = make_step(agent, module, config, optimizer)
            captured = CapturedStep(ddp, step, optimizer, config, ALONE, ddp)
            for _ in range(4):
                ppo_update(captured.loss, batch, captured.step, COEFS, config)
            ends.append(module.weights.flat.detach().cpu())
            del agent
    finally:
        release_graphs()
        torch.distributed.destroy_process_group()
    said = capfd.readouterr()
    assert "not one CUDA graph" not in said.out + said.err
    torch.testing.assert_close(*ends, rtol=1e-5, atol=1e-8)  # rates are float32 in a graph


@pytest.mark.parametrize("action", ["discrete", "box"])
@torch.no_grad()
def test_a_small_agent_acts_on_the_cpu_as_it_would_there(action):
    agent = build_acting_agent(ACTIONS[action], normalize_observations=True).to(DEVICE)
    choice, noise = ActorChoice(agent), torch.randn(3, 8, agent.distribution.noise_size)
    for _ in range(2):
        fast = choice(agent, noise, observe(BOX, 8))
        assert type(fast) is CompiledActor
        expected = agent.act(observe(BOX, 8).to(DEVICE), noise[0].to(DEVICE))[0].cpu().numpy()
        np.testing.assert_allclose(fast.act(observe(BOX, 8).numpy()), expected, rtol=1e-4, atol=1e-5)
        for each in agent.parameters():
            each.add_(0.1)


@needs_gpu
def test_images_cross_the_bus_once():
    agent = build_acting_agent(ACTIONS["discrete"], IMAGES, encoder="nature").to(DEVICE)
    noise, seen = torch.zeros(3, 2, 5), [observe(IMAGES, 2, seed).numpy() for seed in range(3)]
    actor = Actor(agent, noise)
    for obs in seen:
        actor.act(obs)
    crossed = actor.observations()
    assert crossed.is_cuda
    assert torch.equal(crossed.cpu(), torch.from_numpy(np.stack(seen)))


def tensor_rollouts(device, count=2, env_id="tensor/CartPole-v1", **flags):
    """Rollouts in an environment as tensor code, and what they were collected with."""
    config = Config(env_id=env_id, env_backend="vector", num_envs=64, num_steps=40, hidden_sizes=(8,), **flags)
    envs = make_envs(config, 0, 1, "", str(device))
    agent = make_agent(envs.spec, config).to(device)
    buffer = RolloutBuffer(envs, agent, config.num_steps, ActorChoice(agent), CapturedRollout(config))
    return config, envs, agent, buffer, [collect(agent, buffer, 1, update) for update in range(count)]


def test_environments_of_the_device_play_as_those_of_the_cpu():
    """From the same starts, with the same draws; rounding makes episodes differ later on."""
    *_, (here,) = tensor_rollouts(torch.device("cpu"), count=1)  # valid until the next one
    *_, (there,) = tensor_rollouts(DEVICE, count=1)
    assert there.obs.device.type == there.rewards.device.type == DEVICE.type
    torch.testing.assert_close(there.obs[:3].cpu(), here.obs[:3], rtol=1e-4, atol=1e-5)
    assert [each.length for each in there.episodes][:20] == [each.length for each in here.episodes][:20]


@needs_gpu
@pytest.mark.parametrize("env_id", TENSOR_ENVS)
def test_no_step_of_a_rollout_on_the_gpu_waits_for_it(env_id):
    config, envs, agent, buffer, _ = tensor_rollouts(DEVICE, env_id=env_id)
    noise = torch.zeros(config.num_steps, config.num_envs, agent.distribution.noise_size)
    with torch.no_grad():
        actor = buffer.make_actor(agent, noise, buffer.tensors.obs[0])
        torch.cuda.set_sync_debug_mode("error")
        try:
            step_tensors(agent, buffer, envs, actor)
        finally:
            torch.cuda.set_sync_debug_mode("default")


@pytest.mark.parametrize("env_id", TENSOR_ENVS)
def test_a_graph_takes_the_steps_of_a_rollout_that_its_kernels_take(env_id, capfd):
    rewards = []
    for compiles in (False, True):
        *_, rollouts = tensor_rollouts(DEVICE, count=5, env_id=env_id, compile=compiles)
        rewards.append((rollouts[-1].rewards.cpu(), rollouts[-1].obs.cpu(), rollouts[-1].log_probs.cpu()))
    said = capfd.readouterr()
    assert "not one CUDA graph" not in said.out + said.err
    assert all(map(torch.equal, *rewards))


@needs_gpu
def test_how_often_an_update_waits(recwarn):
    """Printed, not bounded: batch and numbers of an update, in environments on the CPU."""
    config, agent, module, batch = training()
    step = make_step(agent, module, config)
    ppo_update(module, batch, step, COEFS, config)
    torch.cuda.set_sync_debug_mode("warn")
    try:
        recwarn.clear()
        ppo_update(module, batch, step, COEFS, config)
    finally:
        torch.cuda.set_sync_debug_mode("default")
    count = sum("synchronizing" in str(each.message) for each in recwarn)
    print(f"an update waits for the GPU {count} time(s)")
    assert count >= 1


def test_packets_arrive():
    own = [torch.arange(5), torch.rand(3, 2), torch.rand(4) < 0.5, torch.rand((), dtype=torch.float64)]
    there = move_together(own, DEVICE)
    assert all(each.device == DEVICE for each in there)
    assert all(map(functools.partial(torch.equal), own, move_together(there, torch.device("cpu"))))


def test_copies_for_a_checkpoint_are_of_the_moment():
    """However late they are read, and whatever the device does meanwhile."""
    own = {name: torch.rand(1000, 1000) for name in "abc"}
    there = {name: each.to(DEVICE, copy=True) for name, each in own.items()}
    copies = Copies(there)
    for each in there.values():
        each.zero_()
    assert all(torch.equal(copies[name], each) for name, each in own.items())
