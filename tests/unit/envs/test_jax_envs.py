"""Vector environments of two pure functions of JAX: episodes are drawn anew, and what ended is given."""

from __future__ import annotations

import gymnasium
import numpy as np
import pytest

from fabric_ppo.envs.jax_envs import JaxVectorEnv

jax = pytest.importorskip("jax")

LENGTH = 4
BOX = gymnasium.spaces.Box(-np.inf, np.inf, (2,))


def reset(key):
    """A state is the step, and a number that is drawn when the episode begins."""
    state = {"t": 0, "drawn": jax.random.uniform(key)}
    return seen(state), state


def step(key, state, action):
    state = state | {"t": state["t"] + 1}
    reward = action + jax.random.uniform(key)
    return seen(state), state, reward, state["t"] == LENGTH, False


def seen(state):
    return jax.numpy.stack([state["t"], state["drawn"]]).astype(float)


def make_env(num_envs=3, reset=reset, step=step, space=BOX):
    return JaxVectorEnv(num_envs, space, gymnasium.spaces.Discrete(2), reset, step)


def play(env, steps, seed=None):
    """Observations, rewards, ends and final observations of some steps, as one list of arrays."""
    obs, _ = env.reset(seed=seed)
    seen = [obs]
    for _ in range(steps):
        obs, rewards, terminated, truncated, info = env.step(jax.numpy.ones(env.num_envs, int))
        seen += [obs, rewards, terminated, truncated, info["final_obs"]]
    return [np.asarray(each) for each in seen]


def test_episodes_end_and_begin_anew_in_one_step():
    env = make_env()
    first, *answers = play(env, 2 * LENGTH, seed=3)
    drawn = first[:, 1]
    assert len({*drawn}) == 3
    for t in range(2 * LENGTH):
        obs, _, terminated, truncated, final_obs = answers[5 * t : 5 * t + 5]
        at = t % LENGTH + 1
        assert final_obs.tolist() == [[at, each] for each in drawn]
        assert terminated.tolist() == [at == LENGTH] * 3
        assert not truncated.any()
        if at == LENGTH:
            assert (obs[:, 0] == 0).all()
            assert not {*obs[:, 1]} & {*drawn}
            drawn = obs[:, 1]
        else:
            assert (obs == final_obs).all()


def test_a_seed_tells_everything_and_without_one_it_goes_on():
    env, same = make_env(), make_env()
    once, again = play(env, 6, seed=3), play(same, 6, seed=3)
    assert all((a == b).all() for a, b in zip(once, again, strict=True))
    assert len({*once[2]}) == 3, "each copy has random numbers of its own"
    assert (play(env, 0, seed=3)[0] == once[0]).all()
    assert (play(env, 0, seed=4)[0] != once[0]).any()
    assert (play(env, 0)[0][:, 1] != play(env, 0)[0][:, 1]).all()


def test_functions_are_compiled_once():
    env = make_env()
    play(env, 2 * LENGTH, seed=3)
    play(env, 2 * LENGTH)
    assert (env._begin._cache_size(), env._advance._cache_size()) == (1, 1)


def test_nested_observations_and_states_of_any_shape():
    space = gymnasium.spaces.Dict(step=gymnasium.spaces.Discrete(9), image=gymnasium.spaces.Box(0, 9, (2, 3)))

    def look(t):
        return {"step": t, "image": jax.numpy.full((2, 3), t, float)}

    def begin(key):
        return look(0), (jax.numpy.zeros((), int), jax.random.key(7), jax.numpy.zeros((2, 2)))

    def go_on(key, state, action):
        t = state[0] + 1
        return look(t), (t, state[1], state[2] + 1), 0.0, False, t == LENGTH

    env = make_env(2, begin, go_on, space)
    env.reset(seed=0)
    for t in range(1, LENGTH + 1):
        obs, *_, truncated, info = env.step(jax.numpy.zeros(2, int))
        assert info["final_obs"]["step"].tolist() == [t, t]
        assert obs["image"].tolist() == np.full((2, 2, 3), t % LENGTH).tolist()
    assert truncated.all()
    assert env._state[2].sum() == 0


def test_an_array_that_all_copies_share_is_that_of_the_step():
    """Some simulators have arrays without a row for each copy, which `vmap` leaves alone."""
    from jax.interpreters import batching

    @jax.tree_util.register_pytree_node_class
    class Shared:
        """An array that is not mapped."""

        def __init__(self, array):
            self.array = array

        def tree_flatten(self):
            return (self.array,), None

        @classmethod
        def tree_unflatten(cls, _, arrays):
            return cls(*arrays)

    batching.register_vmappable(Shared, int, int, lambda cont, size, x, axis: x, lambda cont, size, x, axis: x, None)

    def begin(key):
        obs, state = reset(key)
        return obs, (state, Shared(jax.numpy.zeros(5)))

    def go_on(key, state, action):
        obs, new, *rest = step(key, state[0], action)
        return obs, (new, Shared(state[1].array + 1)), *rest

    env = make_env(3, begin, go_on)
    play(env, LENGTH + 1, seed=0)
    assert env._state[1].array.tolist() == [LENGTH + 1] * 5
