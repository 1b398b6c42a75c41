"""`imitate`: a policy from demonstrations, for training to start from."""

from __future__ import annotations

import math
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from fabric_ppo.config import Config
from fabric_ppo.config_values import field_types
from fabric_ppo.process.command import package_command
from fabric_ppo.process.console import format_number, print_line
from fabric_ppo.process.errors import FAILED, ConfigError, EnvironmentFault, TrainingError, flag
from fabric_ppo.process.files import require_text_path
from fabric_ppo.tools.command_parser import CommandParser, count
from fabric_ppo.tools.flags import names_given, parse_flags
from fabric_ppo.tools.help import Entry
from fabric_ppo.tools.words import flag_of

if TYPE_CHECKING:
    from fabric_ppo.ppo.behaviour_cloning import EpochResult
    from fabric_ppo.tools.imitate import Imitation

ENTRY = Entry("imitate --data FILE --out DIR", "Train an agent on demonstrations, to start training from.")
"""Row of this command on the page of all."""
TAKEN = (
    *("config", "seed", "env_id", "env_kwargs", "env_wrapper", "obs_keys", "action_bounds"),
    *("hidden_sizes", "activation_function", "shared_trunk", "layer_norm", "encoder", "recurrent", "recurrent_size"),
    *("log_std_init", "state_dependent_std", "log_std_min", "log_std_max", "ortho_init", "init_from"),
    *("optimizer", "optimizer_kwargs", "learning_rate", "anneal_lr", "adam_eps", "max_grad_norm"),
    *("per_rank_batch_size", "gamma", "vf_coef", "ent_coef", "anneal_ent_coef"),
    *("normalize_observations", "normalize_rewards", "num_threads", "quiet"),
)
"""Fields of Config that have a meaning here, with that of training."""


def run(args: list[str]) -> int:
    """Train an agent on demonstrations, and write its folder."""
    given, flags = imitate_parser().parse_known_args(args)
    _require_taken(flags)
    if given.epochs < 1:
        raise ConfigError(f"--epochs {given.epochs}: a whole number from 1 up is expected")
    if not 0 <= given.validation < 1:
        raise ConfigError(f"--validation {given.validation:g}: a number from 0 to below 1 is expected")
    for source in given.data:
        require_text_path("--data", source)
        if given.data.count(source) > 1:  # an episode must not be in training and held out
            raise ConfigError(f"--data {source}: it is given twice; once is expected")
    require_text_path("--out", given.out)
    config = parse_flags(Config, flags, "fabric-ppo imitate")
    # these imports load torch, which takes seconds: wrong flags are reported before
    from fabric_ppo.tools.imitate import imitate, require_new_folder, write

    # the environment's code may change the working directory
    out = Path(given.out).absolute()
    require_new_folder(out)

    def report(epoch: int, result: EpochResult) -> None:
        if not config.quiet:
            print_line(_line(epoch, given.epochs, result, given.validation), sys.stdout)

    try:
        done = imitate(config, names_given(Config, flags), given.data, given.epochs, given.validation, report)
        write(done, out)
    except (TrainingError, EnvironmentFault, OSError) as error:
        print_line(f"error: {error}", sys.stderr)
        return FAILED
    if not config.quiet:
        print(_result(done, given.out))
    return 0


def _require_taken(flags: list[str]) -> None:
    """Raise a ConfigError for a flag of training that has no meaning here."""
    for word in flags:
        name = flag_of(word).removeprefix("--").removeprefix("no-").replace("-", "_")
        # of --critic-keys `load` says why
        if word.startswith("--") and name in field_types(Config) and name not in (*TAKEN, "critic_keys"):
            raise ConfigError(f"{flag_of(word)}: has no meaning in imitate; see fabric-ppo imitate --help")


def _line(epoch: int, epochs: int, result: EpochResult, validation: float) -> str:
    """Return the line of an epoch."""
    number = f"epoch {epoch + 1:{len(str(epochs))}}/{epochs}"
    train = f"negative log-likelihood {format_number(result.train_nll)} in training"
    if not validation:
        return f"{number}  {train}"
    return f"{number}  {train}, {format_number(result.validation_nll)} in validation, {_match(result)}"


def _match(result: EpochResult) -> str:
    """Return how well the greedy policy acts as held-out demonstrations do."""
    numbers = {"accuracy": result.accuracy, "mean squared error": result.squared_error}
    return ", ".join(f"{name} {format_number(number)}" for name, number in numbers.items() if not math.isnan(number))


def _result(done: Imitation, out: str) -> str:
    """Return the last lines: what was learnt from, and what can be done with it."""
    best = done.epochs[done.best]
    data = f"{done.demonstrations.num_episodes} episodes, {len(done.demonstrations.rewards):,} transitions"
    match = f", {_match(best)}" if done.validation else ""
    train = ["train", "torch", "--config", f"{out}/config.yaml", "--init-from", out]
    return "\n".join(
        [
            f"imitated {data}; the weights are those of epoch {done.best + 1}{match}",
            f"policy   {Path(out) / 'policy.safetensors'}",
            f"test     {package_command(['evaluate', out])}",
            f"train    {package_command(train)}",
        ]
    )


def imitate_parser() -> CommandParser:
    """Return the parser of this command's own flags."""
    parser = CommandParser("fabric-ppo imitate")
    parser.description = (
        "Train a policy to act as in demonstrations (behaviour cloning), and its value function on their returns; "
        "--init-from of the training scripts starts with it. Flags of training that it takes, too: "
        f"{', '.join(map(flag, TAKEN))}."
    )
    data = "Files of evaluate --record, and datasets of Minari on this machine, minari:ID."
    parser.add_argument("--data", nargs="+", required=True, metavar="FILE", help=data)
    parser.add_argument("--out", required=True, metavar="DIR", help="New folder for the policy.")
    epochs = "Passes over the demonstrations. (default: 30)"
    parser.add_argument("--epochs", "--update-epochs", type=count, default=30, help=epochs)
    validation = "Share of the episodes that is held out; the epoch that explains them best is kept. (default: 0.1)"
    parser.add_argument("--validation", type=float, default=0.1, metavar="X", help=validation)
    return parser
