"""The code that fast parts were written for, and edits of it that no comparison of numbers would find."""

import json
import shutil
import subprocess

import pytest
import torch
from safetensors.torch import load_file

from fabric_ppo.fast import written_for
from fabric_ppo.fast.written_for import ACTING, FINGERPRINTS, LOSS, edited, fingerprint
from tests.fixtures.copies import copy_of_the_repository, train_in
from tests.fixtures.processes import PATIENCE

CODE = '''"""A module."""
LIMIT = 3
"""Of the loop."""


def first(x):
    """Return the first."""
    # one by one
    for each in x:
        if each:
            return each
    with torch.no_grad():
        kl = 2
    return Losses("none", kl, kl)


class Losses:
    """Loss and parts."""

    loss: float
'''


@pytest.mark.parametrize("name", FINGERPRINTS)
def test_fast_parts_are_written_for_the_code_as_it_is(name):
    """Compare the fast form with the edited code, line by line; then put the new fingerprint into written_for.py."""
    assert fingerprint((written_for._PACKAGE / name).read_text()) == FINGERPRINTS[name]


def test_every_file_has_a_fingerprint_and_is_unedited():
    assert {*LOSS, *ACTING} == set(FINGERPRINTS)
    assert edited(LOSS) == edited(ACTING) == []


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ('"""Of the loop."""', '"""Of the loop, which ends."""'),
        ("    # one by one\n", ""),
        ('"""Return the first."""', '"""Return the first that counts."""'),
        ("for each in x:\n", "for each in x:  # all\n\n"),
        ('    """Return the first."""\n', ""),
        ("kl = 2", "kl = 3\n        ratio = 4"),
        ("kl, kl)", "kl, kl, 7)"),
        ("    loss: float", "    loss: float\n    ratio: float"),
    ],
)
def test_what_is_not_code_may_change(old, new):
    assert old in CODE
    assert fingerprint(CODE.replace(old, new)) == fingerprint(CODE)


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ("LIMIT = 3", "LIMIT = 4"),
        ('"none"', '"no one"'),
        ("            return each", "            pass\n        return each"),
        ('    return Losses("none"', '        return Losses("none"'),
        ("if each", "if not each"),
        ("kl = 2", "x = 2"),
        ("kl = 2", "kl = 2\n        x.mul_(3)"),
        ("kl = 2", "kl = x.mul_(3)"),
        ("kl = 2", "kl = 2\n        x[0] = 3"),
    ],
)
def test_code_may_not(old, new):
    assert old in CODE
    assert fingerprint(CODE.replace(old, new, 1)) != fingerprint(CODE)


EDITS = {
    # each is the same in a run's first minibatch, and in its first observations
    "a coefficient that begins at zero": (
        "ppo/loss.py",
        "    loss = policy_loss + coefs.vf_coef * value_loss + coefs.ent_coef * entropy_loss\n",
        "    loss = policy_loss + coefs.vf_coef * value_loss + coefs.ent_coef * entropy_loss\n"
        "    loss = loss + max(0.0, 0.19 - coefs.clip_coef) * torch.dot(rows.weights, log_ratio.square())\n",
        "fast/compiled_loss.py",
    ),
    "values that are far off": (
        "ppo/loss.py",
        "    value_loss = 0.5 * torch.dot(rows.weights, squared_error)\n",
        "    squared_error = torch.minimum(squared_error, 60 * (new.values - rows.returns).abs() - 900).clamp(min=0) "
        "if squared_error.max() > 900 else squared_error\n"
        "    value_loss = 0.5 * torch.dot(rows.weights, squared_error)\n",
        "fast/compiled_loss.py",
    ),
    "weights of rare rows": (
        "ppo/loss.py",
        "    policy_loss = -torch.dot(",
        "    with torch.no_grad(): rows = rows._replace(weights=rows.weights * (rows.advantages.abs() < 2.5))\n"
        "    policy_loss = -torch.dot(",
        "fast/compiled_loss.py",
    ),
    "how it encodes": (
        "agents/encoders.py",
        "        features = obs.to(dtype).reshape(obs.shape[0], self.num_features)\n",
        "        features = obs.to(dtype).reshape(obs.shape[0], self.num_features).clamp(-0.5, 0.5)\n",
        "fast/",
    ),
    "the actor, later": (
        "rollouts/actor.py",
        "        actions = agent.distribution.sample(params, self.noise[len(self._params)])\n",
        "        with torch.no_grad(): params = params / (2 if len(self._params) > 64 else 1)\n"
        "        actions = agent.distribution.sample(params, self.noise[len(self._params)])\n",
        "fast/compiled_actor.py",
    ),
    "how the actor draws": (
        "rollouts/actor.py",
        "        actions = agent.distribution.sample(params, self.noise[len(self._params)])\n",
        "        actions = agent.distribution.sample(params / 3, self.noise[len(self._params)])\n",
        "fast/compiled_actor.py",
    ),
    "a rare step": (
        "rollouts/actor.py",
        "        self._params.append(params)\n",
        "        self._params.append(params)\n        actions = actions * (len(self._params) % 20 > 0)\n",
        "fast/compiled_actor.py",
    ),
}

FLAGS = ["--total-timesteps=4096", "--num-threads=1", "--anneal-clip-coef", "--test-episodes=0", "--quiet"]


def trained_in(copy, part):
    """Train in a copy: the policy's weights, and the lines on stderr that name a part."""
    done = train_in(copy, "torch", 0, *FLAGS, "--run-dir=run")
    lines = [line for line in done.stderr.splitlines() if part in line]
    return torch.cat([each.flatten() for each in load_file(copy / "run/policy.safetensors").values()]), lines


@pytest.fixture(scope="module")
def unedited(tmp_path_factory):
    """A copy of the checkout, in which nothing is edited, has been trained."""
    return trained_in(copy_of_the_repository(tmp_path_factory.mktemp("copy") / "unedited"), "fast/")


@pytest.mark.processes
@pytest.mark.parametrize("name", EDITS)
def test_an_edit_that_shows_later_trains_and_acts(name, tmp_path, unedited):
    """In a copy of the checkout, as a user makes it: a line, and other weights than without."""
    file, old, new, part = EDITS[name]
    copy = copy_of_the_repository(tmp_path / "edited")
    path = copy / "fabric_ppo" / file
    assert path.read_text().count(old) == 1
    path.write_text(path.read_text().replace(old, new))
    weights, lines = trained_in(copy, part)
    assert (unedited[1], len(lines)) == ([], 2 if part == "fast/" else 1)
    assert not torch.equal(weights, unedited[0])


PYTHONS = [path for minor in range(10, 16) if (path := shutil.which(f"python3.{minor}"))]
TEXT = "a = f'{b:{c}}' f\"{d!r}\\n{'e' + f'{g}'}\"\nh = f'''{i}\n{j}'''\n"
PROGRAM = """
import json, runpy, sys, types
for name in ("fabric_ppo", "fabric_ppo.fast", "fabric_ppo.fast.replaced"):
    sys.modules[name] = types.ModuleType(name)
sys.modules["fabric_ppo.fast.replaced"].replaced_functions = None
found = runpy.run_path(sys.argv[1])
texts = {name: (found["_PACKAGE"] / name).read_text("utf-8") for name in found["FINGERPRINTS"]}
texts["more"] = sys.argv[2]
print(json.dumps({name: found["fingerprint"](text) for name, text in texts.items()}))
"""


@pytest.mark.parametrize("python", PYTHONS)
def test_every_python_gives_the_same_fingerprints(python):
    """Since Python 3.12 the parts of an f-string are tokens of their own."""
    words = [python, "-c", PROGRAM, written_for.__file__, TEXT]
    done = subprocess.run(words, capture_output=True, text=True, timeout=PATIENCE)
    if done.returncode == 127:
        pytest.skip("it is named in the path, and not there")
    assert json.loads(done.stdout) == {**FINGERPRINTS, "more": fingerprint(TEXT)}
