"""PPO on raw PyTorch: each rank has environments and a copy of the agent, DDP averages gradients.

torchrun --nproc_per_node=2 --standalone train_torch.py --env-id LunarLander-v3
python train_torch.py                                    # one process, no launcher
"""

from fabric_ppo.process.hold import begin_script

if __name__ == "__main__":
    begin_script()  # signals wait until the flags are read, from when on they stop a run

from fabric_ppo.config import TorchConfig
from fabric_ppo.tools.flags import parse_args

if __name__ == "__main__":
    # before the heavy imports, so that --help and a wrong flag are answered at once
    CONFIG = parse_args(TorchConfig)

import torch
import torch.distributed as dist
from torch import Tensor
from torch.nn.parallel import DistributedDataParallel

from fabric_ppo.agents.make import make_agent
from fabric_ppo.envs.make import make_envs
from fabric_ppo.fast.captured_rollout import CapturedRollout
from fabric_ppo.fast.captured_step import CapturedStep, recordable
from fabric_ppo.fast.compiled_actor import ActorChoice
from fabric_ppo.fast.gradient_clip import GradientClip
from fabric_ppo.fast.loss_module import PPOLoss, compile_loss, make_optimizer
from fabric_ppo.fast.shared_memory import reduce_in_shared_memory
from fabric_ppo.ppo.batch import make_batch
from fabric_ppo.ppo.schedules import adapt_learning_rate, coefficients, set_learning_rate
from fabric_ppo.ppo.update import ppo_update
from fabric_ppo.process.devices import rank_device
from fabric_ppo.process.group import Ranks, join_process_group
from fabric_ppo.process.launch import read_launch
from fabric_ppo.process.script import run_script
from fabric_ppo.rollouts.buffer import RolloutBuffer
from fabric_ppo.rollouts.collect import collect
from fabric_ppo.run.folder import new_run_dir
from fabric_ppo.run.parts import NO_PARTS, Parts
from fabric_ppo.run.setup import RunSetup
from fabric_ppo.run.summary import Summary


def all_gather(tensor: Tensor) -> Tensor:
    """Gather a tensor of all ranks, `[...]` to `[world size, ...]`."""
    gathered = tensor.new_empty(dist.get_world_size(), *tensor.shape)
    dist.all_gather(list(gathered.unbind()), tensor.contiguous())
    return gathered


def main(config: TorchConfig, parts: Parts = NO_PARTS) -> Summary:
    """Train and test an agent; its files are in the run folder."""
    run_dir = new_run_dir(config)
    launch = read_launch()
    device, backend = rank_device(launch, config.cuda)
    if launch.world_size > 1:
        join_process_group(backend, config.timeout)
    ranks = Ranks(launch.rank, launch.world_size, all_gather)

    with RunSetup(config, ranks, run_dir, parts) as setup:
        envs = setup.closing(make_envs(config, ranks.rank, ranks.size, setup.video_dir, str(device)))
        if config.cuda:  # after the environments, whose processes are forked from this one
            torch.cuda.set_device(device)
        agent = make_agent(envs.spec, config)
        ppo = PPOLoss(agent, config).to(device)
        optimizer = make_optimizer(ppo, config)
        devices = [device] if config.cuda else None
        with recordable(device, config):
            ddp = DistributedDataParallel(ppo, device_ids=devices) if launch.world_size > 1 else None
        loss_fn = ddp or ppo
        reduce_in_shared_memory(ddp, ranks, config.timeout)
        compile_loss(ppo, config)
        clip_gradient = GradientClip(ppo, config.max_grad_norm)

        def step(loss: Tensor) -> Tensor:
            optimizer.zero_grad()
            loss.backward()
            norm = clip_gradient()
            optimizer.step()
            agent.clamp_log_std()
            return norm

        captured = CapturedStep(loss_fn, step, optimizer, config, ranks, ddp)
        buffer = RolloutBuffer(envs, agent, config.num_steps, ActorChoice(agent), CapturedRollout(config))
        run = setup.start(agent, optimizer, buffer)
        for update in run.updates():
            learning_rate = set_learning_rate(optimizer, config, update, run.num_updates)
            coefs = coefficients(config, update, run.num_updates)
            rollout = collect(agent, buffer, config.seed, update)
            batch = make_batch(rollout, config, ranks, update, device)
            stats = ppo_update(captured.loss, batch, captured.step, coefs, config, ranks)
            result = run.merge(rollout, stats)
            agent.update_statistics(result.moments)
            adapt_learning_rate(optimizer, config, result.approx_kl)
            run.finish_update(result, learning_rate)
        return run.finish()


if __name__ == "__main__":
    run_script(main, CONFIG)
