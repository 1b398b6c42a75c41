"""What a loss, an estimator or a step of the user's own returns: nonsense is one line that names the function."""

from __future__ import annotations

import math
import re

import pytest
import torch

from fabric_ppo.fast.loss_module import PPOLoss
from fabric_ppo.ppo import advantages, loss, update
from fabric_ppo.ppo.batch import Batch, make_batch
from fabric_ppo.ppo.loss import Losses, MinibatchLoss, minibatch_loss, ppo_loss
from fabric_ppo.ppo.returned import checked_norm, checked_optimizer
from fabric_ppo.ppo.update import ppo_update
from fabric_ppo.process.errors import ConfigError, TrainingError
from fabric_ppo.process.group import ALONE
from tests.fixtures.agents import build_agent
from tests.fixtures.rollouts import make_rollout
from tests.fixtures.rows import make_rows
from tests.fixtures.spaces import ACTIONS
from tests.fixtures.updates import CONFIG, coefs_of, make_step, train_on

OTHERS = {
    "nothing": (None, "None"),
    "a number": (0.5, "0.5"),
    "a switch": (True, "True"),
    "a vector": (torch.ones(3), r"a tensor of shape \[3\]"),
    "another object": ("text", "a str"),
    "two": ((torch.zeros(()), torch.zeros(())), "a tuple of 2"),
}
each_other = pytest.mark.parametrize(("value", "said"), OTHERS.values(), ids=OTHERS)
LOSSES = r"Losses\(loss, policy_loss, value_loss, entropy_loss, approx_kl, clip_fraction\) is expected"


def refused(text):
    """An update whose loss has been replaced is refused with this text, in one line."""
    agent = build_agent(ACTIONS["box"])
    with pytest.raises(ConfigError, match=text) as caught:
        train_on(agent, make_rows(agent, 32), CONFIG)
    assert "\n" not in str(caught.value)


@each_other
def test_a_loss_that_is_none_is_named(value, said, monkeypatch):
    monkeypatch.setattr(loss, "ppo_loss", lambda *_: value)
    refused(rf"^ppo_loss returned {said}: {LOSSES}$")


def test_a_tuple_of_the_right_length_is_enough(monkeypatch):
    monkeypatch.setattr(loss, "ppo_loss", lambda *given: tuple(ppo_loss(*given)))
    agent = build_agent(ACTIONS["box"])
    assert train_on(agent, make_rows(agent, 32), CONFIG).gradient_steps == 12


@pytest.mark.parametrize(("value", "said"), [each for name, each in OTHERS.items() if name != "two"])
@pytest.mark.parametrize("name", Losses._fields)
def test_a_part_that_is_no_scalar_is_named(name, value, said, monkeypatch):
    monkeypatch.setattr(loss, "ppo_loss", lambda *given: ppo_loss(*given)._replace(**{name: value}))
    refused(rf"^ppo_loss returned Losses with {name} {said}: a scalar tensor is expected$")


def test_a_part_that_is_only_logged_is_checked_where_the_compiled_loss_trains(monkeypatch):
    """An edit of the file that its fingerprint leaves out: no line names it."""
    monkeypatch.setattr("fabric_ppo.fast.reasons.replaced", lambda _: [])
    monkeypatch.setattr(loss, "ppo_loss", lambda *given: ppo_loss(*given)._replace(clip_fraction=0.5))
    refused(r"^ppo_loss returned Losses with clip_fraction 0.5: ")


@each_other
def test_a_minibatch_loss_that_is_none_is_named(value, said, monkeypatch):
    monkeypatch.setattr(loss, "minibatch_loss", lambda *_: value)
    refused(rf"^minibatch_loss returned {said}: a MinibatchLoss is expected$")


@pytest.mark.parametrize(("value", "said"), [each for name, each in OTHERS.items() if name != "two"])
@pytest.mark.parametrize("name", MinibatchLoss._fields)
def test_a_field_of_another_kind_is_named(name, value, said, monkeypatch):
    if isinstance(value, torch.Tensor) and name not in ("loss", "parts"):
        pytest.skip("it is a tensor")
    monkeypatch.setattr(loss, "minibatch_loss", lambda *given: minibatch_loss(*given)._replace(**{name: value}))
    refused(
        rf"^minibatch_loss returned a MinibatchLoss with {name} {said}: a \w+( tensor)?( of 5 numbers)? is expected$"
    )


@pytest.mark.parametrize("owner", ["ppo_loss", "minibatch_loss"])
def test_a_loss_without_a_gradient_is_named(owner, monkeypatch):
    usual = getattr(loss, owner)

    def mine(*given):
        found = usual(*given)
        return found._replace(loss=found.loss.detach())

    monkeypatch.setattr(loss, owner, mine)
    refused(
        r"^minibatch_loss returned a MinibatchLoss with a loss without a gradient: .*, without detach\(\) or item\(\)"
    )


def test_it_is_found_in_a_later_minibatch_too(monkeypatch):
    calls = []

    def mine(*given):
        calls.append(None)
        return ppo_loss(*given) if len(calls) < 7 else None

    monkeypatch.setattr(loss, "ppo_loss", mine)
    refused("^ppo_loss returned None: ")
    assert len(calls) == 7


@pytest.mark.parametrize(("value", "said"), [each for name, each in OTHERS.items() if name != "two"])
def test_a_step_that_returns_no_norm_is_named_by_its_file(value, said):
    agent = build_agent(ACTIONS["box"])
    module = PPOLoss(agent, CONFIG)
    usual = make_step(agent, module, CONFIG)

    def step(each):
        usual(each)
        return value

    batch = Batch(make_rows(agent, 32), 0, 1, CONFIG.seed, 0)
    with pytest.raises(ConfigError, match=f"^step of test_returned.py returned {said}: the gradient's norm, a scalar "):
        ppo_update(module, batch, step, coefs_of(CONFIG), CONFIG)


def test_a_step_without_code_of_its_own_is_named_too():
    with pytest.raises(ConfigError, match=r"^step returned None"):
        checked_norm(None, torch.detach)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.int64])
def test_a_norm_of_any_type_is_logged(dtype):
    agent = build_agent(ACTIONS["box"])
    module = PPOLoss(agent, CONFIG)
    usual = make_step(agent, module, CONFIG)

    def step(each):
        usual(each)
        return torch.tensor(3, dtype=dtype)

    batch = Batch(make_rows(agent, 32), 0, 1, CONFIG.seed, 0)
    assert ppo_update(module, batch, step, coefs_of(CONFIG), CONFIG).grad_norm == 3.0


@each_other
def test_an_estimator_that_returns_no_advantages_is_named(value, said, monkeypatch):
    rollout = make_rollout(4, 2)
    said = r"a tensor of shape \[\] among its two" if isinstance(value, tuple) else said
    monkeypatch.setattr(advantages, "gae", lambda *_: value)
    shape = re.escape(str(list(rollout.values.shape)))
    with pytest.raises(ConfigError, match=rf"^gae returned {said}: advantages and returns, tensors of shape {shape},"):
        make_batch(rollout, CONFIG, ALONE, 0, torch.device("cpu"))


def broken(place, value):
    """A `gae` one of whose two results has a value in one place."""

    def gae(*given):
        found = usual_gae(*given)
        found[place][2, 1] = value
        return found

    return gae


usual_gae = advantages.gae


@pytest.mark.parametrize(("value", "said"), [(math.nan, "NaN"), (math.inf, "inf"), (-math.inf, "inf")])
@pytest.mark.parametrize(("place", "name"), enumerate(("advantages", "returns")))
def test_an_estimator_that_returns_what_is_not_finite_is_named(place, name, value, said, monkeypatch):
    monkeypatch.setattr(advantages, "gae", broken(place, value))
    text = f"^update 4: gae returned {said} among its {name}, though rewards and values are finite; mend .*$"
    with pytest.raises(TrainingError, match=text) as caught:
        make_batch(make_rollout(4, 2), CONFIG, ALONE, 3, torch.device("cpu"))
    assert "\n" not in str(caught.value)


def test_infinities_that_cancel_are_found(monkeypatch):
    monkeypatch.setattr(advantages, "gae", lambda *given: (usual_gae(*given)[0], opposite(given[1])))
    with pytest.raises(TrainingError, match=r"gae returned inf among its returns"):
        make_batch(make_rollout(4, 2), CONFIG, ALONE, 0, torch.device("cpu"))


def opposite(values):
    """As many positive infinities as negative ones."""
    return torch.full_like(values, math.inf) * torch.tensor([1.0, -1.0])


@pytest.mark.parametrize("name", ["values", "next_values", "rewards"])
def test_an_estimator_is_not_blamed_for_what_it_got(name):
    """The run's guard says what is not finite."""
    rollout = make_rollout(4, 2)
    getattr(rollout, name)[1, 1] = math.nan
    rollout.terminated[:] = False
    batch = make_batch(rollout, CONFIG, ALONE, 0, torch.device("cpu"))
    assert bool(batch.rows.advantages.isnan().any())


def test_large_advantages_are_fine(monkeypatch):
    """Their sum is not finite, they are."""
    large = torch.full((4, 2), 3e38)
    monkeypatch.setattr(advantages, "gae", lambda *_: (large, large))
    rollout = make_rollout(4, 2, dtype=torch.float32)
    assert bool(make_batch(rollout, CONFIG, ALONE, 0, torch.device("cpu")).rows.returns.isfinite().all())


@pytest.mark.parametrize(
    ("value", "said"),
    [
        *[each for name, each in OTHERS.items() if name != "two"],
        (torch.optim.Adam, "the class Adam"),
        ({"optimizer": 1}, "a dict"),
        ((), "a tuple of 0"),
    ],
)
def test_what_is_no_optimizer_is_named(value, said):
    with pytest.raises(ConfigError, match=rf"^make_optimizer returned {said}: a torch.optim.Optimizer is expected$"):
        checked_optimizer(value)


def optimizers():
    """PyTorch's own whose step can be called without arguments, by its signature."""
    classes = [each for each in vars(torch.optim).values() if isinstance(each, type)]
    return [each for each in classes if issubclass(each, torch.optim.Optimizer) and each is not torch.optim.Optimizer]


@pytest.mark.parametrize("kind", optimizers(), ids=lambda kind: kind.__name__)
def test_an_optimizer_that_needs_a_closure_is_named(kind):
    """LBFGS alone evaluates the loss more than once in a step."""
    optimizer = kind([torch.nn.Parameter(torch.zeros(2, 2))])
    if kind is not torch.optim.LBFGS:
        assert checked_optimizer(optimizer) is optimizer
        return
    with pytest.raises(
        ConfigError, match=r"^make_optimizer returned LBFGS, whose step\(\) needs a closure: one whose "
    ):
        checked_optimizer(optimizer)


def test_an_optimizer_without_a_learning_rate_is_named():
    optimizer = torch.optim.Optimizer([torch.nn.Parameter(torch.zeros(2))], {"rate": 0.1})
    with pytest.raises(
        ConfigError, match=r"^make_optimizer returned Optimizer with a parameter group that has no lr: "
    ):
        checked_optimizer(optimizer)


@pytest.mark.parametrize(
    ("parts", "text"),
    [
        (
            (*Losses._fields, "mean_ratio"),
            "^Losses of ppo/loss.py has mean_ratio, and UpdateStats of ppo/update.py has n",
        ),
        (Losses._fields[:-1], "^UpdateStats of ppo/update.py has clip_fraction, and Losses of ppo/loss.py has not: "),
    ],
)
def test_a_part_that_is_declared_in_one_place_is_named(parts, text, monkeypatch):
    class Edited(Losses):
        _fields = parts

    monkeypatch.setattr(update, "Losses", Edited)
    refused(text)
