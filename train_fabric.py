"""PPO on Lightning Fabric: every rank has environments and a copy of the agent, Fabric averages the gradients.

fabric run --accelerator=cpu --strategy=ddp --devices=2 train_fabric.py --env-id LunarLander-v3
python train_fabric.py                                   # one process, no launcher
"""

from fabric_ppo.config import Config
from fabric_ppo.flags import parse_args

if __name__ == "__main__":
    CONFIG = parse_args(Config)  # before the heavy imports: --help and a wrong flag answer at once

from lightning.fabric import Fabric
from torch import Tensor

from fabric_ppo.agent import make_agent
from fabric_ppo.batch import make_batch
from fabric_ppo.distributed import Ranks, one_process_unless_launched
from fabric_ppo.envs import make_envs
from fabric_ppo.launch import run_script
from fabric_ppo.lightning_module import PPOModule, ScalarsLogger, SealsRows
from fabric_ppo.loggers import markdown_table
from fabric_ppo.rollout import RolloutBuffer, collect
from fabric_ppo.run import Run, Summary, new_run_dir
from fabric_ppo.shared_memory import reduce_in_shared_memory
from fabric_ppo.update import begin_update, compile_loss, ppo_update


def main(config: Config) -> Summary:
    """Train, test, and leave a run folder."""
    run_dir = new_run_dir(config, "fabric")
    one_process_unless_launched()
    logger = ScalarsLogger(run_dir, name="", version="")
    fabric = Fabric(loggers=logger)
    ranks = Ranks(fabric.global_rank, fabric.world_size, fabric.all_gather)

    with Run(config, "fabric", ranks, run_dir) as run:
        envs = run.closing(make_envs(config, ranks.rank, ranks.size, run.video_dir))
        agent = make_agent(envs.spec, config)
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

        buffer = RolloutBuffer(envs, agent, config.num_steps, first_env=ranks.rank * config.num_envs)
        run.restore(agent, optimizer, buffer)
        run.closing(logger.experiment).add_text("hyperparameters", markdown_table(config.to_dict()))
        run.log_to(fabric.log_dict)
        for update in run.updates():
            now = begin_update(ppo, optimizer, config, update, run.num_updates)
            rollout = collect(envs, agent, buffer, config.seed, update)
            batch = make_batch(rollout, config, ranks, update, fabric.device)
            stats = ppo_update(ppo, batch, step, now, ranks)
            run.finish_update(rollout, stats, now.learning_rate)
        return run.finish(agent)


if __name__ == "__main__":
    run_script(main, CONFIG)
