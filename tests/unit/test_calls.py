"""Public functions called from Python with names and types that other programs have: one line says what is right."""

from __future__ import annotations

import pickle

import numpy as np
import pytest

from fabric_ppo import Config, Policy, RunResult, evaluate, export, load_agent, load_run, train
from fabric_ppo.config_call import answering
from fabric_ppo.process.errors import ConfigError
from tests.fixtures.agents import agent_for

OBS = np.zeros(4, np.float32)
FOLDER = "the folder of a run, as in"


@pytest.fixture(scope="module")
def agent():
    return Policy(agent_for())


FUNCTIONS = {
    "load_agent": (load_agent, f"{FOLDER} load_agent('RUN_DIR'), is expected"),
    "load_run": (load_run, f"{FOLDER} load_run('RUN_DIR'), is expected"),
    "export": (export, f"{FOLDER} export('RUN_DIR', 'onnx', 'agent.onnx'), is expected"),
}


@pytest.mark.parametrize(("function", "text"), FUNCTIONS.values(), ids=FUNCTIONS)
@pytest.mark.parametrize("given", [3, None, "", b"run", ["run"], RunResult, 0.5, OBS], ids=str)
def test_what_is_no_folder_is_answered_in_a_line(function, text, given):
    more = {"to": "onnx", "out": "agent.onnx"} if function is export else {}
    with pytest.raises(ConfigError) as caught:
        function(given, **more)
    assert str(caught.value).startswith(f"{function.__name__}(")
    assert str(caught.value).endswith(f": {text}")


@pytest.mark.parametrize(
    ("call", "text"),
    [
        (lambda: load_agent(), f"load_agent(): {FOLDER} load_agent('RUN_DIR'), is expected"),
        (lambda: load_agent("x", device="gpu"), "load_agent(device='gpu' (str)): cpu, or cuda where there is a GPU,"),
        (lambda: load_agent("x", device=0.5), "load_agent(device=0.5): cpu, or cuda where there is a GPU,"),
        (lambda: load_agent(path="x"), "load_agent(path=...): here it is run_dir"),
        (lambda: load_agent(run_dri="x"), "load_agent(run_dri=...): did you mean run_dir?"),
        (lambda: load_agent("x", qqqq=3), "load_agent(qqqq=...): the arguments are run_dir, own_code, device"),
        (lambda: load_agent("x", env=None), "load_agent(env=...): it needs none"),
        (lambda: load_agent("x", own_code="no"), "load_agent(own_code='no' (str)): True or False is expected"),
        (
            lambda: load_agent("x", True, "cpu", 3),
            "load_agent(...): 4 values without a name; run_dir, own_code",
        ),
        (lambda: load_agent("x", run_dir="y"), "load_agent(run_dir=...): it is given twice"),
        (lambda: load_run(), f"load_run(): {FOLDER} load_run('RUN_DIR'), is expected"),
        (lambda: load_run(folder="x"), "load_run(folder=...): here it is run_dir"),
        (lambda: load_run("x", own_code=2), "load_run(own_code=2): True or False is expected"),
        (lambda: RunResult(3), "RunResult(3): the folder of a run is expected"),
        (lambda: export("x"), "export(): to is expected"),
        (lambda: export("x", "onnx", 3), "export(3): the file to write is expected"),
        (lambda: export("x", "onnx", output="y"), "export(output=...): here it is out"),
        (lambda: evaluate("x", 1, 2, 3), "evaluate(...): 4 values without a name; policy, episodes, seed can be given"),
        (lambda: evaluate("x", own_code="y"), "evaluate(own_code='y' (str)): True or False is expected"),
        (lambda: evaluate("x", stochastic="y"), "evaluate(stochastic='y' (str)): True or False is expected"),
        (lambda: evaluate("x", video_dir=3), "evaluate(video_dir=3): a folder is expected"),
        (lambda: evaluate("x", report=3), "evaluate(report=3): a function is expected"),
        (lambda: evaluate("x", info_keys=3), "evaluate(info_keys=3): text, as in info_keys='x_position', is expected"),
        (lambda: train(Config(), verbose="x"), "train(verbose='x' (str)): True or False is expected"),
        (lambda: train(Config(), True, []), "train(...): 3 values without a name; config, verbose can be given so"),
        (lambda: train(Config(), callback=3), "train(callback=...): did you mean callbacks?"),
        (lambda: Config(total_timesteps="many"), "--total-timesteps 'many' (str): a whole number is expected"),
        (lambda: Config(*range(90)), "Config(...): 90 values without a name; there are "),
        (lambda: Policy("x"), "Policy('x' (str)): load_agent('RUN_DIR') makes one"),
    ],
)
def test_a_call_that_cannot_work_is_answered_in_a_line(call, text):
    with pytest.raises(ConfigError) as caught:
        call()
    assert str(caught.value).startswith(text)


@pytest.mark.parametrize(
    ("method", "given", "text"),
    [
        ("act", {}, "act(): one observation, or a batch of them, is expected"),
        ("act", {"observation": OBS}, "act(observation=...): here it is obs"),
        ("act", {"obs": OBS, "state": None}, "act(state=...): here it is memory"),
        ("act", {"obs": OBS, "stochastic": True}, "act(stochastic=...): deterministic=False samples"),
        ("act", {"obs": OBS, "deterministic": "no"}, "act(deterministic='no' (str)): True or False is expected"),
        ("act", {"obs": OBS, "action_masks": 3}, "act(action_masks=...): the observation holds it"),
        ("predict", {"obs": OBS}, "predict(obs=...): here it is observation"),
        ("predict", {"observation": OBS, "mask": None}, "predict(mask=...): here it is episode_start"),
        ("predict", {"observation": OBS, "state": True}, "predict(state=True): the memory from the call before"),
        (
            "predict",
            {"observation": OBS, "deterministic": None},
            "predict(deterministic=None): True or False is expected",
        ),
        ("value", {"observation": OBS}, "value(observation=...): here it is obs"),
        ("new_memory", {"batch": "x"}, "new_memory('x' (str)): a whole number of episodes is expected"),
        ("new_memory", {"batch": -1}, "new_memory(-1): a whole number of episodes is expected"),
    ],
)
def test_so_is_one_of_an_agents_methods(method, given, text, agent):
    with pytest.raises(ConfigError) as caught:
        getattr(agent, method)(**given)
    assert str(caught.value).startswith(text)


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("learn", "train(Config(init_from=RUN_DIR)) trains it on"),
        ("save", "it lies in the folder of its run already, as policy.safetensors"),
        ("load", "load_agent(RUN_DIR) loads one"),
        ("policy", "its module is a PyTorch module, as in agent.module.to(DEVICE)"),
        ("observation_space", "it has no environment, but the spaces of one, as spec"),
        ("preditc", "did you mean predict?"),
    ],
)
def test_a_method_that_an_agent_does_not_have_is_answered(name, text, agent):
    with pytest.raises(AttributeError) as caught:
        getattr(agent, name)
    assert str(caught.value) == f"'Policy' object has no attribute {name!r}; {text}"
    assert not hasattr(agent, name)


def test_an_agent_is_copied_and_sent_as_before(agent):
    assert pickle.loads(pickle.dumps(agent)).act(OBS) == agent.act(OBS)


def test_numbers_stand_for_true_and_false_as_before(agent):
    for yes in (True, 1, 1.0, np.bool_(True), np.int64(1)):
        assert agent.act(OBS, deterministic=yes) == agent.predict(OBS, deterministic=yes)[0]


def test_errors_of_the_function_itself_are_its_own():
    @answering("a number")
    def function(number: int, more: int = 0) -> int:
        return number + len(more)  # type: ignore[arg-type]

    with pytest.raises(TypeError, match="len"):
        function(1)
