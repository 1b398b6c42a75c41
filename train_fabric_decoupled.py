"""PPO on Lightning Fabric, decoupled: rank 0 is the player, the other ranks are the trainers.

The player has the environments and collects rollouts; the trainers optimise on them.

fabric run --devices=3 train_fabric_decoupled.py --num-envs 4
fabric run --devices=3 train_fabric_decoupled.py --num-envs 4 --overlap
"""

from fabric_ppo.process.hold import begin_script

if __name__ == "__main__":
    begin_script()  # signals wait until the flags are read, from when on they stop a run

from fabric_ppo.config import DecoupledConfig
from fabric_ppo.tools.flags import parse_args

if __name__ == "__main__":
    # before the heavy imports, so that --help and a wrong flag are answered at once
    CONFIG = parse_args(DecoupledConfig)

from datetime import timedelta

import torch
from lightning.fabric import Fabric
from lightning.fabric.plugins.collectives import TorchCollective
from lightning.fabric.strategies.ddp import DDPStrategy
from torch import Tensor

from fabric_ppo.agents.make import make_agent
from fabric_ppo.architectures.exchange import (
    Exchange,
    Stopwatch,
    TrainerStats,
    merge_trainers,
    receive_spec,
    send_spec,
)
from fabric_ppo.architectures.lightning_module import PPOModule, ddp_inside, loss_through
from fabric_ppo.architectures.overlap import PlayerStats, RolloutAhead
from fabric_ppo.architectures.placement import (
    FIRST_TRAINER,
    PLAYER,
    Placement,
    TrainerEnvironment,
    forget_fabric_run,
    place,
    ranks_of,
)
from fabric_ppo.envs.make import make_envs
from fabric_ppo.fast.captured_rollout import CapturedRollout
from fabric_ppo.fast.captured_step import CapturedStep
from fabric_ppo.fast.compiled_actor import ActorChoice
from fabric_ppo.fast.flat_weights import FlatWeights
from fabric_ppo.fast.gradient_clip import GradientClip
from fabric_ppo.fast.loss_module import compile_loss, make_optimizer
from fabric_ppo.fast.shared_memory import reduce_in_shared_memory
from fabric_ppo.ppo.batch import make_batch
from fabric_ppo.ppo.schedules import adapt_learning_rate, coefficients, set_learning_rate
from fabric_ppo.ppo.update import ppo_update
from fabric_ppo.process.devices import count_gpus
from fabric_ppo.process.group import ALONE, join_process_group
from fabric_ppo.process.launch import read_launch
from fabric_ppo.process.profile import Profile
from fabric_ppo.process.script import run_script
from fabric_ppo.process.signals import signals
from fabric_ppo.rollouts.buffer import Rollout, RolloutBuffer
from fabric_ppo.run.folder import new_run_dir
from fabric_ppo.run.prepare import prepare_process
from fabric_ppo.run.setup import RunSetup
from fabric_ppo.run.summary import Summary


def main(config: DecoupledConfig) -> Summary | None:
    """Join the process groups, and be player or trainer."""
    forget_fabric_run()
    launch = read_launch()
    placement = place(launch.rank, launch.world_size, config.cuda, config.player_on_gpu, count_gpus())
    if placement.accelerator == "cuda":
        torch.cuda.set_device(placement.device)
    join_process_group(placement.world_backend, config.timeout)
    world, trainers = TorchCollective(), TorchCollective()
    trainers.create_group(
        ranks=list(range(FIRST_TRAINER, launch.world_size)),
        backend=placement.trainers_backend,
        timeout=timedelta(seconds=config.timeout),
    )
    prepare_process(config, ranks_of(world, placement.packets_on))
    if launch.rank == PLAYER:
        return player(config, world, placement)
    trainer(config, world, trainers, placement)
    return None


def player(config: DecoupledConfig, world: TorchCollective, placement: Placement) -> Summary:
    """Collect rollouts, send them to the trainers, and act with the weights that they send back.

    The player logs, tests and saves, too.
    """
    run_dir = new_run_dir(config)
    fabric = Fabric(accelerator=placement.accelerator, devices=placement.devices)

    with RunSetup(config, ALONE, run_dir) as setup:
        envs = setup.closing(make_envs(config, 0, 1, setup.video_dir, str(fabric.device)))
        send_spec(world, envs.spec, placement.packets_on)
        agent = make_agent(envs.spec, config)
        weights = fabric.setup_module(FlatWeights(agent))
        # it takes no step: it gets the state of the trainers' optimizer, for checkpoints
        optimizer = make_optimizer(weights, config)
        exchange = Exchange(world, agent, weights, optimizer, config, placement.packets_on)

        buffer = RolloutBuffer(envs, agent, config.num_steps, ActorChoice(agent), CapturedRollout(config))
        run = setup.start(agent, optimizer, buffer)
        exchange.start(run.first_update)
        ahead, waiting = RolloutAhead(agent, buffer, config), Stopwatch()
        ahead.resume(run.in_flight, run.first_update)

        def send(update: int) -> Rollout:
            rollout = ahead.take(update)
            exchange.send(make_batch(rollout, config, ALONE, update, placement.packets_on))
            return rollout

        sent: Rollout | None = None
        for update in run.updates():
            learning_rate = set_learning_rate(optimizer, config, update, run.num_updates)
            rollout = sent or send(update)
            lag = ahead.policy_lag
            ahead.collect(update + 1)
            with waiting:
                stats, of_trainers = exchange.receive_reply()
            idle = PlayerStats(lag, waiting.lap())
            result = run.merge(rollout, stats)
            agent.update_statistics(result.moments)
            adapt_learning_rate(optimizer, config, result.approx_kl)
            goes_on = ahead.is_there and not run.is_last(result)
            # before the logs, so that the trainers need not wait for them
            sent = send(update + 1) if goes_on else None
            run.finish_update(result, learning_rate, idle, of_trainers)
        exchange.send(None)
        return run.finish()


def trainer(config: DecoupledConfig, world: TorchCollective, trainers: TorchCollective, placement: Placement) -> None:
    """Optimise on the rows that the player sends; DDP among the trainers averages the gradients."""
    ranks = ranks_of(trainers, placement.trainers_gather_on)
    several = DDPStrategy(process_group=trainers.group, cluster_environment=TrainerEnvironment(ranks))
    # a single trainer has nothing to average, and DDP would only take time
    strategy = several if ranks.size > 1 else "auto"
    fabric = Fabric(accelerator=placement.accelerator, devices=placement.devices, strategy=strategy)
    fabric.launch()

    agent = make_agent(receive_spec(world, placement.packets_on), config)
    module = PPOModule(agent, config, prints=ranks.rank == 0)
    wrapped, optimizer = fabric.setup(module, module.configure_optimizers())
    loss_fn, ddp = loss_through(wrapped), ddp_inside(wrapped)
    reduce_in_shared_memory(ddp, ranks, config.timeout)
    compile_loss(module.loss, config)
    clip_gradient = GradientClip(module, config.max_grad_norm)

    def step(loss: Tensor) -> Tensor:
        optimizer.zero_grad()
        fabric.backward(loss)
        norm = clip_gradient()
        optimizer.step()
        agent.clamp_log_std()
        return norm

    captured = CapturedStep(loss_fn, step, optimizer, config, ranks, ddp)
    exchange = Exchange(world, agent, module, optimizer, config, placement.packets_on)
    waiting, num_updates = Stopwatch(), config.num_updates(1)
    first_update = exchange.receive_start()
    profile = Profile.start() if config.profile else None
    signals.begin_training()
    for update in range(first_update, num_updates + 1):
        with waiting:
            batch = exchange.receive(update, fabric.device)
        if batch is None:
            break
        set_learning_rate(optimizer, config, update, num_updates)
        coefs = coefficients(config, update, num_updates)
        stats = ppo_update(captured.loss, batch, captured.step, coefs, config, ranks)
        own = TrainerStats(waiting.lap(), bool(signals.name))
        stats, of_trainers = merge_trainers(stats, own, ranks)
        adapt_learning_rate(optimizer, config, stats.approx_kl)
        exchange.reply(stats, of_trainers)
    if profile is not None:
        profile.finish(ranks, None, "trainer")
    signals.raise_if_asked()


if __name__ == "__main__":
    run_script(main, CONFIG)
