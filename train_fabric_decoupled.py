"""PPO on Lightning Fabric, decoupled: rank 0 is the player, with the environments; the other ranks are the trainers.

fabric run --devices=3 train_fabric_decoupled.py --num-envs 4
fabric run --devices=3 train_fabric_decoupled.py --num-envs 4 --overlap
"""

from fabric_ppo.config import DecoupledConfig
from fabric_ppo.flags import parse_args

if __name__ == "__main__":
    CONFIG = parse_args(DecoupledConfig)  # before the heavy imports: --help and a wrong flag answer at once

from datetime import timedelta

import torch
from lightning.fabric import Fabric
from lightning.fabric.plugins.collectives import TorchCollective
from lightning.fabric.strategies.ddp import DDPStrategy
from torch import Tensor

from fabric_ppo.agent import make_agent
from fabric_ppo.batch import make_batch
from fabric_ppo.distributed import ALONE, join_process_group, prepare_process
from fabric_ppo.envs import make_envs
from fabric_ppo.launch import read_launch, run_script
from fabric_ppo.lightning_module import PPOModule, ScalarsLogger, SealsRows
from fabric_ppo.loggers import markdown_table
from fabric_ppo.roles import (
    FIRST_TRAINER,
    PLAYER,
    Exchange,
    Placement,
    Stopwatch,
    TrainerEnvironment,
    forget_fabric_run,
    place,
    ranks_of,
    receive_spec,
    send_spec,
    trainer_devices,
)
from fabric_ppo.rollout import Rollout, RolloutBuffer, collect, revalue
from fabric_ppo.run import Run, Summary, new_run_dir
from fabric_ppo.shared_memory import reduce_in_shared_memory
from fabric_ppo.signals import signals
from fabric_ppo.update import begin_update, compile_loss, ppo_update


def main(config: DecoupledConfig) -> Summary | None:
    """Join the others and take this rank's role."""
    forget_fabric_run()
    launch = read_launch()
    placement = place(launch.rank, config.cuda, config.player_on_gpu)
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
    """Collect rollouts, send them to the trainers and act with the weights that come back; log, test, save."""
    run_dir = new_run_dir(config, "fabric_decoupled")
    logger = ScalarsLogger(run_dir, name="", version="")
    devices = [placement.device] if config.player_on_gpu else 1
    fabric = Fabric(accelerator=placement.accelerator, devices=devices, loggers=logger)

    with Run(config, "fabric_decoupled", ALONE, run_dir) as run:
        envs = run.closing(make_envs(config, 0, 1, run.video_dir))
        send_spec(world, envs.spec, placement.packets_on)
        agent = make_agent(envs.spec, config)
        module = PPOModule(agent, config)
        fabric.setup_module(module)
        exchange = Exchange(world, agent, module, config, placement.packets_on)

        buffer = RolloutBuffer(envs, agent, config.num_steps, first_env=0)
        run.restore(agent, exchange, buffer)
        exchange.start(run.first_update)
        run.closing(logger.experiment).add_text("hyperparameters", markdown_table(config.to_dict()))
        run.log_to(fabric.log_dict)
        waiting, ahead, sent = Stopwatch(), None, None

        def send(collected: Rollout | None, update: int) -> Rollout:
            """Send what was collected ahead, as the newest policy sees it, or what that collects now."""
            if collected is None:
                rollout = collect(envs, agent, buffer, config.seed, update)
            else:
                rollout = revalue(agent, buffer, collected)
            exchange.send(make_batch(rollout, config, ALONE, update, placement.packets_on))
            return rollout

        if config.overlap and 0 < run.first_update < run.num_updates:
            with run.weights_in_flight():
                ahead = collect(envs, agent, buffer, config.seed, run.first_update, with_values=False)
        for update in run.updates():
            lag = 0 if ahead is None else 1
            rollout = sent or send(ahead, update)
            goes_ahead = config.overlap and update + 1 < run.num_updates
            ahead = collect(envs, agent, buffer, config.seed, update + 1, with_values=False) if goes_ahead else None
            with waiting:
                stats, trainer_idle = exchange.receive_reply()
            idle = {"Info/policy_lag": lag, "Time/player_idle": waiting.lap(), "Time/trainer_idle": trainer_idle}
            now = begin_update(module, exchange, config, update, run.num_updates)  # on this side what is logged only
            report = run.agree(rollout, stats)  # of `rollout` only what is not in the buffer, where `ahead` lies by now
            try:  # the trainers need not wait for the report, and are missed only after it
                sent = send(ahead, update + 1) if ahead and run.goes_on else None
            finally:
                run.report(report, now.learning_rate, idle)
        exchange.send(None)
        return run.finish(agent)


def trainer(config: DecoupledConfig, world: TorchCollective, trainers: TorchCollective, placement: Placement) -> None:
    """Optimise on what the player sends; DDP among the trainers averages the gradients."""
    ranks = ranks_of(trainers, placement.computes_on)
    devices = trainer_devices(config, ranks.size)
    ddp = DDPStrategy(process_group=trainers.group, cluster_environment=TrainerEnvironment(ranks))
    strategy = ddp if ranks.size > 1 else "auto"  # alone there is nothing to average, but DDP would take its time
    fabric = Fabric(accelerator=placement.accelerator, devices=devices, strategy=strategy)
    fabric.launch()

    agent = make_agent(receive_spec(world, placement.packets_on), config)
    module = PPOModule(agent, config)
    wrapped, optimizer = fabric.setup(module, module.configure_optimizers())
    ppo = SealsRows(wrapped)  # mixed precision is for the networks, not for what they learn from
    reduce_in_shared_memory(ppo, ranks, config.timeout)
    compile_loss(ppo, ranks, config)

    def step(loss: Tensor) -> Tensor:
        optimizer.zero_grad()
        fabric.backward(loss)
        norm: Tensor = optimizer.step()  # clips the gradient first
        return norm

    exchange = Exchange(world, agent, module, config, placement.packets_on)
    waiting, num_updates = Stopwatch(), config.num_updates(1)
    signals.begin_training()
    for update in range(exchange.receive_start(optimizer), num_updates + 1):
        with waiting:
            batch = exchange.receive(update, fabric.device)
        if batch is None:
            return signals.raise_if_asked()
        now = begin_update(ppo, optimizer, config, update, num_updates)
        stats = ppo_update(ppo, batch, step, now, ranks)
        exchange.reply(ranks, stats, optimizer, waiting.lap())


if __name__ == "__main__":
    run_script(main, CONFIG)
