"""PPO on Lightning Fabric: each rank has environments and a copy of the agent.

Fabric averages the gradients.

fabric run --accelerator=cpu --strategy=ddp --devices=2 train_fabric.py --env-id LunarLander-v3
python train_fabric.py                                   # one process, no launcher
"""

from fabric_ppo.process.hold import begin_script

if __name__ == "__main__":
    begin_script()  # signals wait until the flags are read, from when on they stop a run

from fabric_ppo.config import Config
from fabric_ppo.tools.flags import parse_args

if __name__ == "__main__":
    # before the heavy imports, so that --help and a wrong flag are answered at once
    CONFIG = parse_args(Config)

from lightning.fabric import Fabric
from torch import Tensor

from fabric_ppo.agents.make import make_agent
from fabric_ppo.architectures.lightning_module import PPOModule, ddp_inside, loss_through
from fabric_ppo.envs.make import make_envs
from fabric_ppo.fast.captured_rollout import CapturedRollout
from fabric_ppo.fast.captured_step import CapturedStep
from fabric_ppo.fast.compiled_actor import ActorChoice
from fabric_ppo.fast.gradient_clip import GradientClip
from fabric_ppo.fast.loss_module import compile_loss
from fabric_ppo.fast.shared_memory import reduce_in_shared_memory
from fabric_ppo.ppo.batch import make_batch
from fabric_ppo.ppo.schedules import adapt_learning_rate, coefficients, set_learning_rate
from fabric_ppo.ppo.update import ppo_update
from fabric_ppo.process.group import Ranks, one_process_unless_launched
from fabric_ppo.process.script import run_script
from fabric_ppo.rollouts.buffer import RolloutBuffer
from fabric_ppo.rollouts.collect import collect
from fabric_ppo.run.folder import new_run_dir
from fabric_ppo.run.parts import NO_PARTS, Parts
from fabric_ppo.run.setup import RunSetup
from fabric_ppo.run.summary import Summary


def main(config: Config, parts: Parts = NO_PARTS) -> Summary:
    """Train and test an agent; its files are in the run folder."""
    run_dir = new_run_dir(config)
    one_process_unless_launched()
    fabric = Fabric()
    ranks = Ranks(fabric.global_rank, fabric.world_size, fabric.all_gather)

    with RunSetup(config, ranks, run_dir, parts) as setup:
        envs = setup.closing(make_envs(config, ranks.rank, ranks.size, setup.video_dir, str(fabric.device)))
        agent = make_agent(envs.spec, config)
        module = PPOModule(agent, config)
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
        buffer = RolloutBuffer(envs, agent, config.num_steps, ActorChoice(agent), CapturedRollout(config))
        run = setup.start(agent, optimizer, buffer)
        for update in run.updates():
            learning_rate = set_learning_rate(optimizer, config, update, run.num_updates)
            coefs = coefficients(config, update, run.num_updates)
            rollout = collect(agent, buffer, config.seed, update)
            batch = make_batch(rollout, config, ranks, update, fabric.device)
            stats = ppo_update(captured.loss, batch, captured.step, coefs, config, ranks)
            result = run.merge(rollout, stats)
            agent.update_statistics(result.moments)
            adapt_learning_rate(optimizer, config, result.approx_kl)
            run.finish_update(result, learning_rate)
        return run.finish()


if __name__ == "__main__":
    run_script(main, CONFIG)
