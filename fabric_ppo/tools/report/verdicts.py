"""Sentences below the curves of a report: what is healthy, and what a run shows.

The bounds are rules of thumb for PPO with a clipped objective, not laws: a report says what it
sees, and leaves the judgement to its reader.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from fabric_ppo.tools.run_names import listed

Level = Literal["good", "note", "warning"]
_LEVELS: tuple[Level, ...] = ("good", "note", "warning")
Values = NDArray[np.float64]
"""Finite values of a metric in the order of updates, `[points]`, at least one."""

_HIGH_KL, _LOW_KL = 0.05, 1e-4
_DESTRUCTIVE_KL = 0.5
"""KL divergence of a single update from which on it can destroy what was learned."""
_MANY_CLIPPED, _FEW_CLIPPED = 0.4, 0.005
_COLLAPSED = 0.05
"""Share of its largest value that an entropy is below where it has collapsed."""
_NO_ENTROPY = 0.03
"""Entropy in nats below which one of discrete actions has collapsed, whatever it was before."""
_FEW = 4
"""Number of values below which nothing is said about their course."""


@dataclass(frozen=True)
class Verdict:
    """Sentence about a metric of a run: `good`, worth a `note`, or a `warning`."""

    level: Level
    text: str


@dataclass(frozen=True)
class Run:
    """Run that a metric is of.

    Attributes:
        flags: field name -> value; empty where they are not known.
        has_collapsed: true if hardly any entropy is left at its end.
        hardly_moves: true if its KL divergence is about 0 in the second half.
    """

    flags: Mapping[str, Any]
    has_collapsed: bool
    hardly_moves: bool


@dataclass(frozen=True)
class Diagnostic:
    """Metric that a report explains.

    Attributes:
        tag: name in the logs.
        title: name on the page.
        healthy: sentence on what is healthy.
        judge: what values show.
        is_sparse: true if updates without a value are usual.
    """

    tag: str
    title: str
    healthy: str
    judge: Callable[[Values, Run], Verdict]
    is_sparse: bool = False


def verdict(diagnostic: Diagnostic, metrics: Mapping[str, NDArray[Any]], flags: Mapping[str, Any]) -> Verdict:
    """Return what a run shows.

    Args:
        diagnostic: the metric.
        metrics: all that the run has, name -> values, NaN where there is none, `[updates]`.
        flags: the run's flags, field name -> value; empty where they are not known.
    """
    values = metrics.get(diagnostic.tag, np.zeros(0))
    finite = values[np.isfinite(values)]
    missing, infinite = len(values) - len(finite), int(np.isinf(values).sum())
    if infinite and not len(finite):
        return Verdict("warning", f"Infinite in {_of(infinite, len(values))}.")
    if not len(finite):
        return _without_values(diagnostic, metrics)
    entropy, late_kl = -_finite(metrics, "Loss/entropy_loss"), _late(_finite(metrics, "Info/approx_kl"))
    hardly_moves = len(late_kl) > 0 and float(np.median(late_kl)) < _LOW_KL
    found = diagnostic.judge(finite, Run(flags, len(entropy) > 0 and _has_collapsed(entropy), hardly_moves))
    if len(values) < _FEW:
        found = Verdict(found.level, f"{found.text} That is of {_count(len(values), 'update')} only.")
    if infinite:
        return Verdict("warning", f"Infinite in {_of(infinite, len(values))}. {found.text}")
    if missing and not diagnostic.is_sparse:
        level: Level = "note" if found.level == "good" else found.level
        return Verdict(level, f"{found.text} No value in {_of(missing, len(values))}.")
    return found


def _without_values(diagnostic: Diagnostic, metrics: Mapping[str, NDArray[Any]]) -> Verdict:
    """Return what a run shows that has no value of a metric."""
    updates = len(metrics.get("update", ()))
    if diagnostic.is_sparse and updates and not _finite(metrics, "Game/episodes").any():
        return Verdict("warning", f"No episode ended in training, in {_count(updates, 'update')}.")
    return Verdict("note", "No value was logged.")


def _finite(metrics: Mapping[str, NDArray[Any]], tag: str) -> Values:
    values = np.asarray(metrics.get(tag, ()), np.float64)
    return values[np.isfinite(values)]


def combine(verdicts: Mapping[str, Verdict]) -> Verdict:
    """Return the sentence about several runs: the gravest ones are named.

    Args:
        verdicts: name of a run -> what it shows; at least one.
    """
    if len(verdicts) == 1:
        return next(iter(verdicts.values()))
    worst = max((each.level for each in verdicts.values()), key=_LEVELS.index)
    names = [name for name, each in verdicts.items() if each.level == worst]
    text = verdicts[names[0]].text
    if worst == "good":
        return Verdict(worst, f"Nothing unusual in any of the {len(verdicts)} runs. {names[0]}: {text}")
    who = f"{len(names)} of {len(verdicts)} runs ({listed(names)})"
    what = "may have a problem here" if worst == "warning" else "are worth a look"
    return Verdict(worst, f"{who} {what if len(names) > 1 else what.replace('are', 'is')}. {names[0]}: {text}")


def _kl(values: Values, run: Run) -> Verdict:
    late, high = float(np.median(_late(values))), int((values > _HIGH_KL).sum())
    advice = "A smaller --learning-rate, fewer --update-epochs or --target-kl keep it down."
    if late > _HIGH_KL:
        return Verdict("warning", f"Too high: {_number(late)} is usual in the second half. {advice}")
    if high > len(values) / 4:
        return Verdict("warning", f"Above {_HIGH_KL} in {_of(high, len(values))}. {advice}")
    usual = f"Usually {_number(np.median(values))}"
    if high:
        text = f"{usual}, but above {_HIGH_KL} {_times(high)}, up to {_number(values.max())}"
        if run.has_collapsed:
            return Verdict("warning", f"{text}, and the entropy has collapsed. {advice}")
        if values.max() > _DESTRUCTIVE_KL:
            return Verdict("warning", f"{text}: an update of that size can destroy what was learned. {advice}")
        return Verdict("note", f"{text}.")
    if np.median(values) < _LOW_KL:
        why = "the entropy has collapsed." if run.has_collapsed else "the policy hardly moves. Is the step too small?"
        return Verdict("note", f"{usual}: {why}")
    return Verdict("good", f"Usually {_number(np.median(values))}, at most {_number(values.max())}.")


def _clip_fraction(values: Values, run: Run) -> Verdict:
    usual = float(np.median(values))
    if usual > _MANY_CLIPPED:
        text = f"{usual:.0%} of the ratios are clipped: most of the data has no gradient left."
        return Verdict("warning", f"{text} A smaller --learning-rate or fewer --update-epochs help.")
    if usual < _FEW_CLIPPED:
        advice = "larger steps may be possible"
        if run.has_collapsed:
            advice = "the entropy has collapsed"
        elif run.hardly_moves:
            advice = "the policy hardly moves, see the KL divergence"
        return Verdict("note", f"Usually {usual:.1%}: clipping hardly acts; {advice}.")
    return Verdict("good", f"Usually {usual:.0%}, at most {values.max():.0%}.")


def _explained_variance(values: Values, run: Run) -> Verdict:
    late = float(np.median(_late(values)))
    if late < 0:
        text = f"Negative ({late:.2f}) in the second half: the value function is worse than a constant."
        text += " That is so, too, where all returns are nearly equal, as once a task is solved."
        return Verdict("warning", f"{text} Otherwise look at --normalize-rewards and --vf-coef.")
    if late < 0.3:
        return Verdict("note", f"{late:.2f} in the second half: the value function explains little of the returns.")
    if late > 0.99:
        return Verdict("good", f"{late:.3f} in the second half: near 1, values predict nearly all of the returns.")
    return Verdict("good", f"{late:.2f} in the second half.")


def _entropy(values: Values, run: Run) -> Verdict:
    entropy = -values
    first, last = float(entropy[0]), _last(entropy)
    course = f"From {_number(first)} to {_number(last)} nats"
    fallen = np.flatnonzero(entropy < _collapse_bound(entropy))
    if run.has_collapsed and (len(entropy) >= _FEW or fallen[0] == 0) and fallen[0] < len(entropy) / 3:
        when = f"{course}: it had collapsed after {_of(int(fallen[0]) + 1, len(entropy))}, exploration ended there."
        return Verdict("warning", f"{when} --ent-coef keeps it up.")
    if len(entropy) < _FEW:
        return Verdict("good", f"{course}.")
    if _is_continuous(entropy):
        if last > first + 1:
            return Verdict("warning", f"{course}: it grows, the actions become noise. Is --ent-coef too large?")
        return Verdict("good", f"{course}; of continuous actions, where less than zero is no fault.")
    if run.has_collapsed:
        return Verdict("note", f"{course}: hardly any randomness is left. Where the return is good, that is fine.")
    if last > 0.97 * first:
        return Verdict("note", f"{course}: the policy is nearly as random as at its beginning.")
    return Verdict("good", f"{course}.")


def _is_continuous(entropy: Values) -> bool:
    """Return True for the entropy of continuous actions, whose zero has no meaning."""
    return float(entropy.min()) < -1e-3  # that of discrete actions may be rounded below 0


def _collapse_bound(entropy: Values) -> float:
    return max(_NO_ENTROPY, _COLLAPSED * float(entropy.max()))


def _last(entropy: Values) -> float:
    return float(np.median(entropy[-max(1, len(entropy) // 10) :]))


def _has_collapsed(entropy: Values) -> bool:
    """Return True if hardly any entropy of discrete actions is left at the end."""
    return not _is_continuous(entropy) and _last(entropy) < _collapse_bound(entropy)


def _grad_norm(values: Values, run: Run) -> Verdict:
    usual, limit = float(np.median(values)), run.flags.get("max_grad_norm")
    early, late = float(np.median(_early(values))), float(np.median(_late(values)))
    if len(values) >= _FEW and late > 10 * max(early, 1e-8):
        return Verdict("warning", f"Grows from {_number(early)} to {_number(late)}: training may become unstable.")
    if values.max() > 100 * max(usual, 1e-8):
        return Verdict("warning", f"Usually {_number(usual)}, with a peak of {_number(values.max())}.")
    text = f"Usually {_number(usual)}, at most {_number(values.max())}"
    if isinstance(limit, (int, float)) and usual > limit:
        return Verdict("good", f"{text}; most updates are scaled down to --max-grad-norm {limit:g}.")
    return Verdict("good", f"{text}.")


def _value_loss(values: Values, run: Run) -> Verdict:
    early, late = float(np.median(_early(values))), float(np.median(_late(values)))
    course = f"From {_number(early)} in the first half to {_number(late)} in the second"
    if len(values) >= _FEW and late > 10 * max(early, 1e-12):
        return Verdict("note", f"{course}: it grows. Returns that grow explain it; --normalize-rewards holds it.")
    return Verdict("good", f"{course}.")


def _policy_loss(values: Values, run: Run) -> Verdict:
    usual = float(np.median(values))
    if abs(usual) > 0.3:
        return Verdict("note", f"Usually {_number(usual)}, which is far from zero. See the KL divergence.")
    return Verdict("good", f"Usually {_number(usual)}.")


def _learning_rate(values: Values, run: Run) -> Verdict:
    if values.min() == values.max():
        return Verdict("good", f"Constant at {_number(values[0])}.")
    return Verdict("good", f"From {_number(values[0])} to {_number(values[-1])}.")


def _return(values: Values, run: Run) -> Verdict:
    # means over tenths, so that one lucky update is no peak
    parts = np.array([part.mean() for part in np.array_split(values, min(10, len(values)))])
    first, best, last = float(parts[0]), float(parts.max()), float(parts[-1])
    course = f"From {_number(first)} to {_number(last)}"
    if len(values) < _FEW:
        return Verdict("good", f"{course}.")
    gain = best - first
    if gain <= 0.02 * max(abs(first), 1e-8):
        return Verdict("warning", f"{course}: no progress over the run.")
    if last < best - 0.3 * gain:
        return Verdict("warning", f"Rose from {_number(first)} to {_number(best)}, then fell to {_number(last)}.")
    return Verdict("good", f"{course}.")


def _early(values: Values) -> Values:
    return values[: (len(values) + 1) // 2]


def _late(values: Values) -> Values:
    return values[len(values) // 2 :]


def _of(count: int, total: int) -> str:
    return f"{count:,} of {_count(total, 'update')}"


def _times(count: int) -> str:
    return "once" if count == 1 else f"{count:,} times"


def _count(count: int, noun: str) -> str:
    return f"{count:,} {noun}{'' if count == 1 else 's'}"


def _number(value: float) -> str:
    """Return a number with three digits; of large ones all before the point."""
    return f"{value:,.0f}" if 1000 <= abs(value) < 1e9 else f"{value:.3g}"


RETURN = Diagnostic(
    "Rewards/rew_avg",
    "Return of training episodes",
    "It rises, and stays where it has come to.",
    _return,
    is_sparse=True,
)
"""The learning curve."""
DIAGNOSTICS = (
    Diagnostic(
        "Info/approx_kl",
        "KL divergence of an update",
        f"About 0.003 to 0.03; above {_HIGH_KL} the policy changes too much in one update.",
        _kl,
    ),
    Diagnostic(
        "Info/clip_fraction",
        "Clipped ratios",
        f"Between 3 % and 30 % of all; above {_MANY_CLIPPED:.0%} little gradient is left.",
        _clip_fraction,
    ),
    Diagnostic(
        "Info/explained_variance",
        "Explained variance of the value function",
        "Rises towards 1; 0 is as good as a constant, below 0 worse.",
        _explained_variance,
    ),
    Diagnostic(
        "Loss/entropy_loss",
        "Entropy loss (minus the entropy)",
        "Rises slowly as the policy becomes certain; a sudden rise means that exploration ends.",
        _entropy,
    ),
    Diagnostic(
        "Info/grad_norm",
        "Norm of the gradient, before clipping",
        "Of one magnitude over the run; growth or single peaks are signs of instability.",
        _grad_norm,
    ),
    Diagnostic("Loss/value_loss", "Value loss", "Falls, or follows the scale of the returns.", _value_loss),
    Diagnostic("Loss/policy_loss", "Policy loss", "Small and negative; its size says little.", _policy_loss),
    Diagnostic("Info/learning_rate", "Learning rate", "Follows its schedule.", _learning_rate),
)
"""Metrics that a report explains, in its order."""
