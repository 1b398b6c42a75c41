"""PPO on raw PyTorch: every rank has environments and a copy of the agent, DDP averages the gradients.

torchrun --nproc_per_node=2 --standalone train_torch.py --env-id LunarLander-v3
python train_torch.py                                    # one process, no launcher
"""

from fabric_ppo.config import TorchConfig
from fabric_ppo.flags import parse_args

if __name__ == "__main__":
    CONFIG = parse_args(TorchConfig)  # before the heavy imports: --help and a wrong flag answer at once

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel
from torch.utils.tensorboard import SummaryWriter

from fabric_ppo.agent import make_agent
from fabric_ppo.batch import make_batch
from fabric_ppo.distributed import Ranks, join_process_group
from fabric_ppo.envs import make_envs
from fabric_ppo.launch import read_launch, run_script
from fabric_ppo.loggers import add_scalars, markdown_table
from fabric_ppo.rollout import RolloutBuffer, collect
from fabric_ppo.run import Run, Summary, new_run_dir
from fabric_ppo.shared_memory import reduce_in_shared_memory
from fabric_ppo.update import PPOLoss, begin_update, compile_loss, make_optimizer, ppo_update


def all_gather(tensor: Tensor) -> Tensor:
    """`[...] -> [world size, ...]`."""
    gathered = tensor.new_empty(dist.get_world_size(), *tensor.shape)
    dist.all_gather(list(gathered.unbind()), tensor.contiguous())
    return gathered


def main(config: TorchConfig) -> Summary:
    """Train, test, and leave a run folder."""
    run_dir = new_run_dir(config, "torch")
    launch = read_launch()
    device = torch.device("cuda", launch.local_rank) if config.cuda else torch.device("cpu")
    if config.cuda:
        torch.cuda.set_device(device)
    if launch.world_size > 1:
        join_process_group("cpu:gloo,cuda:nccl" if config.cuda else "gloo", config.timeout)
    ranks = Ranks(launch.rank, launch.world_size, all_gather)

    with Run(config, "torch", ranks, run_dir) as run:
        envs = run.closing(make_envs(config, ranks.rank, ranks.size, run.video_dir))
        agent = make_agent(envs.spec, config)
        ppo: nn.Module = PPOLoss(agent, config).to(device)
        optimizer = make_optimizer(ppo, config)
        if launch.world_size > 1:
            ppo = DistributedDataParallel(ppo, device_ids=[launch.local_rank] if config.cuda else None)
        reduce_in_shared_memory(ppo, ranks, config.timeout)
        compile_loss(ppo, ranks, config)

        def step(loss: Tensor) -> Tensor:
            optimizer.zero_grad()
            loss.backward()
            norm: Tensor = optimizer.step()  # clips the gradient first
            return norm

        buffer = RolloutBuffer(envs, agent, config.num_steps, first_env=ranks.rank * config.num_envs)
        run.restore(agent, optimizer, buffer)
        if ranks.rank == 0:
            writer = run.closing(SummaryWriter(run_dir))
            writer.add_text("hyperparameters", markdown_table(config.to_dict()))
            run.log_to(lambda metrics, step: add_scalars(writer, metrics, step))
        for update in run.updates():
            now = begin_update(ppo, optimizer, config, update, run.num_updates)
            rollout = collect(envs, agent, buffer, config.seed, update)
            batch = make_batch(rollout, config, ranks, update, device)
            stats = ppo_update(ppo, batch, step, now, ranks)
            run.finish_update(rollout, stats, now.learning_rate)
        return run.finish(agent)


if __name__ == "__main__":
    run_script(main, CONFIG)
