"""Work that the programs are asked to do, agreed in numbers, and who does it with which settings."""

from __future__ import annotations

from dataclasses import dataclass, replace


@dataclass(frozen=True)
class Work:
    """One training, in the terms that all programs share.

    `num_envs`, `num_steps` and `batch_size` are per rank. Decoupled, only the player has environments, and the other
    ranks share its rows. A `preset`, a YAML file of our flags, stands for everything but environment and stop.
    `normalize` is of observations and rewards. An Atari game, `ALE/...`, is preprocessed as usual and played by the
    convolutions of Mnih et al. with a layer of 512; everything else by networks of 64 x 64 with tanh.
    """

    env_id: str
    env_steps: int
    num_envs: int
    num_steps: int
    batch_size: int
    epochs: int
    learning_rate: float = 1e-3
    gamma: float = 0.99
    gae_lambda: float = 0.95
    ent_coef: float = 0.0
    clip_coef: float = 0.2
    normalize: bool = False
    ranks: int = 1
    decoupled: bool = False
    stop_at_return: float | None = None
    preset: str = ""

    @property
    def atari(self) -> bool:
        """True for an Atari game."""
        return self.env_id.startswith("ALE/")

    @property
    def minibatches(self) -> int:
        """Minibatches of an epoch."""
        rows = self.rollout // (self.ranks - 1 if self.decoupled else self.ranks)
        return -(-rows // self.batch_size)

    @property
    def rollout(self) -> int:
        """Transitions of an update, over all ranks."""
        return self.num_envs * self.num_steps * (1 if self.decoupled else self.ranks)

    @property
    def gradient_steps(self) -> int:
        """Steps of the optimizer, which the ranks take together."""
        return self.env_steps // self.rollout * self.epochs * self.minibatches

    def scaled(self, scale: float) -> Work:
        """The same with `scale` times as many transitions, in whole updates, at least one."""
        updates = max(1, round(self.env_steps * scale / self.rollout))
        return replace(self, env_steps=updates * self.rollout)


@dataclass(frozen=True)
class Setting:
    """A way to run a program that changes its speed, not its work: environment variables and flags."""

    name: str
    variables: tuple[tuple[str, str], ...] = ()
    flags: tuple[str, ...] = ()


AS_IT_COMES = Setting("as it comes")
ONE_THREAD = Setting("one thread", (("OMP_NUM_THREADS", "1"),))
ONE_XLA_THREAD = Setting("one thread", (("OMP_NUM_THREADS", "1"), ("XLA_FLAGS", "--xla_cpu_multi_thread_eigen=false")))
OUR_ONE_THREAD = Setting("one thread", flags=("--num-threads", "1"))
SERIAL = Setting("serial", flags=("--serial_mode=True", "--async_rl=False"))
SERIAL_ONE_THREAD = Setting("serial, one thread", ONE_THREAD.variables, SERIAL.flags)


FEW = 3
"""Rounds of programs that take many times as long as the first row."""


@dataclass(frozen=True)
class Contender:
    """A row of the table. Of several settings, the one that is quickest on a part of the work is taken.

    With `most_rounds` it runs in the first rounds only: for programs that take many times as long.
    """

    row: str
    program: str
    work: Work
    settings: tuple[Setting, ...] = (AS_IT_COMES,)
    most_rounds: int | None = None


@dataclass(frozen=True)
class Workload:
    """Comparison: everyone's work against the agreed one, everyone's time against the first row's.

    `tolerance` is the share by which transitions and gradient steps may miss the agreed ones, for programs that stop
    between updates; times are then compared per transition. Where the work has a return to stop at, that is the
    agreement, and counts are free.
    """

    name: str
    title: str
    agreed: Work
    contenders: tuple[Contender, ...]
    note: str
    limit_seconds: float = 900.0
    tolerance: float = 0.0

    def scaled(self, scale: float) -> Workload:
        """The same with `scale` times the work; a work that ends at a return stays as it is."""
        if self.agreed.stop_at_return is not None:
            return self
        contenders = tuple(replace(each, work=each.work.scaled(scale)) for each in self.contenders)
        return replace(self, agreed=self.agreed.scaled(scale), contenders=contenders)


def one_process() -> Workload:
    """P1."""
    work = Work("CartPole-v1", 65536, num_envs=1, num_steps=128, batch_size=64, epochs=10)
    contenders = (
        Contender("train_torch.py", "torch", work),
        Contender("train_fabric.py", "fabric", work),
        Contender("Stable-Baselines3", "stable-baselines3", work, (AS_IT_COMES, ONE_THREAD), most_rounds=FEW),
        Contender("CleanRL", "cleanrl", work, (AS_IT_COMES, ONE_THREAD), most_rounds=FEW),
        Contender("rejax", "rejax", work, (AS_IT_COMES, ONE_XLA_THREAD)),
        Contender("SBX", "sbx", work, (AS_IT_COMES, ONE_XLA_THREAD), most_rounds=FEW),
        Contender("SheepRL", "sheeprl", work, (AS_IT_COMES, ONE_THREAD), most_rounds=FEW),
    )
    note = (
        "Networks of 64 x 64 with tanh. Ours log, save and test as always; Stable-Baselines3, SBX and CleanRL log to "
        "TensorBoard. SheepRL runs its own benchmark configuration, which neither logs, saves nor tests, and in which "
        "policy and value share their hidden layers. rejax compiles environment, rollout and update into one program, "
        "which neither logs, saves nor tests; compiling is not in its seconds of training."
    )
    return Workload("p1", "CartPole, one process", work, contenders, note)


def two_ranks() -> Workload:
    """P1-2."""
    work = Work("CartPole-v1", 65536, num_envs=1, num_steps=128, batch_size=64, epochs=10, ranks=2)
    contenders = (
        Contender("train_torch.py", "torch", work),
        Contender("train_fabric.py", "fabric", work),
        Contender("SheepRL", "sheeprl", work, (AS_IT_COMES, ONE_THREAD), most_rounds=FEW),
    )
    note = "As P1, on two ranks with gradients averaged. Stable-Baselines3 and SBX have no ranks."
    return Workload("p1-2", "CartPole, two ranks", work, contenders, note)


def headline() -> Workload:
    """P2."""
    work = Work("LunarLander-v3", 61 * 8192, num_envs=2, num_steps=2048, batch_size=64, epochs=10, ranks=2)
    contenders = (
        Contender("train_torch.py", "torch", work),
        Contender("train_fabric.py", "fabric", work),
        Contender("Lightning's example, raw PyTorch", "lightning-example", work, most_rounds=2),
    )
    note = "Half a million in whole rollouts. The example gives every environment a render mode."
    return Workload("p2", "LunarLander, two ranks", work, contenders, note)


def decoupled() -> Workload:
    """P3."""
    work = Work("CartPole-v1", 65536, num_envs=4, num_steps=128, batch_size=64, epochs=10, ranks=3, decoupled=True)
    contenders = (
        Contender("train_fabric_decoupled.py", "decoupled", work),
        Contender("train_fabric_decoupled.py --overlap", "decoupled-overlap", work),
        Contender("SheepRL 0.6", "sheeprl-decoupled", work, (AS_IT_COMES, ONE_THREAD), most_rounds=FEW),
        Contender("Lightning's example, decoupled", "lightning-example-decoupled", work, most_rounds=2),
    )
    note = "A player with four environments and two trainers. SheepRL dropped its decoupled PPO after 0.6.1."
    return Workload("p3", "CartPole, decoupled, three processes", work, contenders, note)


def solve_lander(preset: str, ranks: int, limit_seconds: float) -> Workload:
    """P4."""
    zoo = Work(
        "LunarLander-v3",
        62 * 16384,  # the million of the Zoo in whole rollouts
        num_envs=16,
        num_steps=1024,
        batch_size=64,
        epochs=4,
        learning_rate=3e-4,
        gamma=0.999,
        gae_lambda=0.98,
        ent_coef=0.01,
        stop_at_return=200.0,
    )
    contenders = (
        Contender(f"train_torch.py --config {preset}", "torch", replace(zoo, preset=preset, ranks=ranks)),
        Contender("train_torch.py", "torch", zoo, most_rounds=1),
        Contender("Stable-Baselines3", "stable-baselines3", zoo, (AS_IT_COMES, ONE_THREAD), most_rounds=1),
        Contender("SBX", "sbx", zoo, (AS_IT_COMES, ONE_XLA_THREAD), most_rounds=1),
    )
    note = (
        "Until the mean return of the last 100 training episodes reaches 200, looked at after every rollout; a new "
        f"seed in every round, {limit_seconds:.0f} s and a million transitions at most. Rows but the first have RL "
        "Baselines3 Zoo's flags, and run once."
    )
    return Workload("p4", "LunarLander, until solved", zoo, contenders, note, limit_seconds)


def throughput() -> Workload:
    """P5."""
    work = Work("CartPole-v1", 524288, num_envs=32, num_steps=32, batch_size=1024, epochs=4)
    two = replace(work, num_envs=16, batch_size=512, ranks=2)
    ahead = replace(work, ranks=2, decoupled=True)
    overlapped = "train_fabric_decoupled.py --overlap --env-backend envpool"
    contenders = (
        Contender("train_torch.py", "torch", work),
        Contender("train_torch.py --env-backend envpool", "torch-envpool", work, (AS_IT_COMES, OUR_ONE_THREAD)),
        Contender("train_torch.py, two ranks", "torch", two),
        Contender("train_torch.py --env-backend envpool, two ranks", "torch-envpool", two),
        Contender(overlapped, "decoupled-overlap-envpool", ahead),
        Contender("train_torch.py --env-id tensor/CartPole-v1", "torch-tensor", work),
        Contender("train_fabric_decoupled.py --overlap --env-id tensor/CartPole-v1", "decoupled-overlap-tensor", ahead),
        Contender("train_torch.py --env-backend envpool --shared-trunk", "torch-envpool-trunk", work),
        Contender(f"{overlapped} --shared-trunk", "decoupled-overlap-envpool-trunk", ahead),
        Contender("rejax", "rejax", work, (AS_IT_COMES, ONE_XLA_THREAD)),
        Contender("Sample Factory", "sample-factory", work, most_rounds=FEW),
        Contender("Sample Factory, serial", "sample-factory", work, (SERIAL, SERIAL_ONE_THREAD), most_rounds=FEW),
        Contender("Stable-Baselines3", "stable-baselines3", work, (AS_IT_COMES, ONE_THREAD), most_rounds=FEW),
        Contender("CleanRL", "cleanrl", work, (AS_IT_COMES, ONE_THREAD), most_rounds=FEW),
    )
    note = (
        "32 environments, updates of 1024 transitions, four epochs of one minibatch. Sample Factory has two workers "
        "with 16 environments each, no recurrence and no normalisation; policy and value share their hidden layers, as "
        "with --shared-trunk. Its seconds of training begin with its first update, and it collects while it learns, as "
        "--overlap does. EnvPool's rows after an episode's end are not counted."
    )
    return Workload("p5", "CartPole, throughput", work, contenders, note, tolerance=0.05)


def wide() -> Workload:
    """P7."""
    work = Work("CartPole-v1", 32 * 65536, num_envs=2048, num_steps=32, batch_size=2048, epochs=4)
    two = replace(work, num_envs=1024, batch_size=1024, ranks=2)
    envpool = "train_torch.py --env-backend envpool"
    contenders = (
        Contender(envpool, "torch-envpool", work, (AS_IT_COMES, OUR_ONE_THREAD)),
        Contender(f"{envpool} --share-data, two ranks", "torch-envpool-share", two),
        Contender("train_torch.py --env-id tensor/CartPole-v1", "torch-tensor", work, (AS_IT_COMES, OUR_ONE_THREAD)),
        Contender("train_torch.py --env-id tensor/CartPole-v1 --share-data, two ranks", "torch-tensor-share", two),
        Contender("rejax", "rejax", work, (AS_IT_COMES, ONE_XLA_THREAD)),
    )
    note = (
        "2048 environments, updates of 65,536 transitions, four epochs of 32 minibatches. rejax as in P1. EnvPool's "
        "rows after an episode's end are not counted."
    )
    return Workload("p7", "CartPole, wide", work, contenders, note, tolerance=0.05)


def pong() -> Workload:
    """P8."""
    work = Work(
        "ALE/Pong-v5",
        32 * 1024,
        num_envs=8,
        num_steps=128,
        batch_size=256,
        epochs=4,
        learning_rate=2.5e-4,
        ent_coef=0.01,
        clip_coef=0.1,
    )
    two = replace(work, num_envs=4, batch_size=128, ranks=2)
    ahead = replace(work, ranks=2, decoupled=True)
    contenders = (
        Contender("train_torch.py --env-backend envpool", "torch-envpool", work, (AS_IT_COMES, OUR_ONE_THREAD)),
        Contender("train_torch.py --env-backend envpool, two ranks", "torch-envpool", two),
        Contender("train_fabric_decoupled.py --overlap --env-backend envpool", "decoupled-overlap-envpool", ahead),
        Contender("CleanRL, EnvPool", "cleanrl", work, (AS_IT_COMES, ONE_THREAD), most_rounds=FEW),
        Contender("Sample Factory, EnvPool", "sample-factory-envpool", work, most_rounds=FEW),
        Contender(
            "Sample Factory, EnvPool, serial",
            "sample-factory-envpool",
            work,
            (SERIAL, SERIAL_ONE_THREAD),
            most_rounds=FEW,
        ),
        Contender("Stable-Baselines3", "stable-baselines3", work, (AS_IT_COMES, ONE_THREAD), most_rounds=FEW),
    )
    note = (
        "8 environments, updates of 1,024 transitions, four epochs of four minibatches, on two cores: what CleanRL, "
        "Sample Factory and RL Baselines3 Zoo have for Atari. Three convolutions and a layer of 512, which policy and "
        "value share; ours have a layer of 64 more. Nothing is tested at the end. Stable-Baselines3 has its own "
        "environments in this process, the others EnvPool's, of which rows after an episode's end are not counted "
        "with ours. Sample Factory's seconds of training begin with its first update."
    )
    return Workload("p8", "Pong, two cores", work, contenders, note, limit_seconds=1800.0, tolerance=0.07)


def cheetah() -> Workload:
    """P9."""
    work = Work(
        "HalfCheetah-v4",
        32 * 2048,
        num_envs=1,
        num_steps=2048,
        batch_size=64,
        epochs=10,
        learning_rate=3e-4,
        normalize=True,
    )
    both = (AS_IT_COMES, ONE_THREAD)
    contenders = (
        Contender("train_torch.py", "torch", work),
        Contender("train_fabric.py", "fabric", work),
        Contender("CleanRL", "cleanrl", work, both, most_rounds=FEW),
        Contender("LeanRL", "leanrl", work, both, most_rounds=FEW),
        Contender("Stable-Baselines3", "stable-baselines3", work, both, most_rounds=FEW),
        Contender("skrl", "skrl", work, both, most_rounds=FEW),
        Contender("Tianshou", "tianshou", work, both, most_rounds=FEW),
        Contender("TorchRL", "torchrl", work, both, most_rounds=FEW),
    )
    note = (
        "LeanRL's work: one environment, updates of 2,048 transitions, ten epochs of 32 minibatches, observations and "
        "rewards normalised. LeanRL's script logs nothing. Its other one, for torch.compile, makes one graph of the "
        "2,048 steps, which had not compiled after 300 s on two busy cores; it is left out. For "
        "rewards, Tianshou scales returns, skrl normalises values, and TorchRL, as in its example, nothing."
    )
    return Workload("p9", "HalfCheetah, one process", work, contenders, note)


def workloads(preset: str, preset_ranks: int, limit_seconds: float) -> dict[str, Workload]:
    """All of them by name."""
    lander = solve_lander(preset, preset_ranks, limit_seconds)
    others = (one_process(), two_ranks(), headline(), decoupled(), lander, throughput(), wide(), pong(), cheetah())
    return {each.name: each for each in others}
