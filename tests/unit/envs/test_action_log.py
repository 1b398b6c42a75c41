"""The log of actions, held against plain Python lists."""

from __future__ import annotations

import copy
import weakref

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from fabric_ppo.envs.action_log import ActionLog

TYPES = [((), np.uint8), ((2,), np.float32), ((3, 2), np.int64)]


class Lists:
    """A plain ActionLog: for each environment, which episode it is in and the actions since its reset."""

    def __init__(self, num_envs):
        self.numbers = [0] * num_envs
        self.episodes = [[] for _ in range(num_envs)]

    def append(self, actions, ended):
        for step_actions, step_ended in zip(actions, ended, strict=True):
            for env, (action, has_ended) in enumerate(zip(step_actions, step_ended, strict=True)):
                self.episodes[env].append(action.tolist())
                if has_ended:
                    self.numbers[env] += 1
                    self.episodes[env] = []


def chunks(rng, num_envs, shape, dtype, sizes, rate):
    """Random actions, no two alike as far as the type allows, and where episodes end: at `rate` of the steps."""
    for steps in sizes:
        actions = rng.integers(0, 250, (steps, num_envs, *shape)).astype(dtype)
        yield actions, rng.random((steps, num_envs)) < rate


def assert_same(view, lists):
    assert view.numbers.tolist() == lists.numbers
    assert view.lengths.tolist() == [len(episode) for episode in lists.episodes]
    assert len(view.actions()) == max(map(len, lists.episodes))
    for env, episode in enumerate(lists.episodes):
        assert view.of(env).tolist() == episode


appends = {
    "seed": st.integers(0, 2**32),
    "num_envs": st.integers(1, 4),
    "kind": st.sampled_from(TYPES),
    "sizes": st.lists(st.integers(1, 7), max_size=12),
    "rate": st.sampled_from([0.0, 0.05, 0.3, 1.0]),
}


@settings(max_examples=150, deadline=None)
@given(**appends)
def test_the_log_is_a_list_of_each_episodes_actions(seed, num_envs, kind, sizes, rate):
    shape, dtype = kind
    log, lists = ActionLog.empty(num_envs, shape, dtype), Lists(num_envs)
    assert_same(log.view(), lists)
    for actions, ended in chunks(np.random.default_rng(seed), num_envs, shape, dtype, sizes, rate):
        log.append(actions, ended)
        lists.append(actions, ended)
        view = log.view()
        assert_same(view, lists)
        assert view.actions().dtype == dtype
        assert view.actions().shape[1:] == (num_envs, *shape)


@settings(max_examples=80, deadline=None)
@given(**appends, stop=st.integers(0, 12))
def test_a_log_that_goes_on_from_a_view_is_the_same_log(seed, num_envs, kind, sizes, rate, stop):
    """From a checkpoint's copy of it, and from each environment's own actions."""
    shape, dtype = kind
    logs, lists = [ActionLog.empty(num_envs, shape, dtype)], Lists(num_envs)
    for index, (actions, ended) in enumerate(chunks(np.random.default_rng(seed), num_envs, shape, dtype, sizes, rate)):
        if index == stop:
            view = logs[0].view()
            logs.append(ActionLog(view.numbers, view.lengths, view.actions()))
            own = [np.array(view.of(env)) for env in range(num_envs)]
            logs.append(ActionLog.of_episodes(view.numbers.tolist(), own))
        lists.append(actions, ended)
        for log in logs:
            log.append(actions.copy(), ended)
            assert_same(log.view(), lists)


@settings(max_examples=100, deadline=None)
@given(**appends, limit=st.integers(0, 400))
def test_memory_is_bounded_and_an_episode_that_outgrew_it_is_lost(seed, num_envs, kind, sizes, rate, limit):
    """An episode is there as a whole or not at all, and is there if it and the chunks at its ends fit."""
    shape, dtype = kind
    log, lists, kept = ActionLog.empty(num_envs, shape, dtype, limit), Lists(num_envs), []
    step_bytes = int(np.prod(shape)) * np.dtype(dtype).itemsize * num_envs
    for actions, ended in chunks(np.random.default_rng(seed), num_envs, shape, dtype, sizes * 3, rate):
        lists.append(actions, ended)
        given_away = actions.copy()
        kept.append((weakref.ref(given_away), given_away.nbytes))
        log.append(given_away, ended)
        del given_away
        assert sum(size for ref, size in kept if ref() is not None) <= limit
        view = log.view()
        assert sum(chunk.nbytes for chunk in view._chunks) <= limit
        assert view.numbers.tolist() == lists.numbers
        for env, episode in enumerate(lists.episodes):
            if view.lengths[env] == -1:
                assert view.of(env) is None
                assert (len(episode) + max(sizes)) * step_bytes > limit
            else:
                assert view.of(env).tolist() == episode
        del view


def test_actions_of_episodes_that_ended_are_freed():
    """A run of a billion steps keeps its last episodes only, far below the limit."""
    log, refs = ActionLog.empty(2, (), np.uint8), []
    for step in range(1000):
        actions = np.full((4, 2), step % 256, np.uint8)
        refs.append(weakref.ref(actions))
        log.append(actions, np.array([[False, False], [True, False], [False, False], [False, step % 5 == 0]]))
        del actions
        assert sum(ref() is not None for ref in refs) <= 6


def test_many_small_pieces_are_few():
    """An endless episode, a step at a time: a piece of a few bytes has an overhead of a hundred."""
    log = ActionLog.empty(2, (), np.uint8)
    actions = np.random.default_rng(0).integers(0, 250, (5000, 1, 2)).astype(np.uint8)
    for step in actions:
        log.append(step, np.zeros((1, 2), bool))
    view = log.view()
    np.testing.assert_array_equal(view.actions(), actions[:, 0])
    assert len(view._chunks) < 30


@settings(max_examples=50, deadline=None)
@given(**appends)
def test_a_view_does_not_change_when_the_log_goes_on(seed, num_envs, kind, sizes, rate):
    shape, dtype = kind
    log, views = ActionLog.empty(num_envs, shape, dtype, 100), []
    for actions, ended in chunks(np.random.default_rng(seed), num_envs, shape, dtype, sizes, rate):
        log.append(actions, ended)
        view = log.view()
        parts = [view.numbers, view.lengths, view.actions(), *(view.of(env) for env in range(num_envs))]
        views.append((view, copy.deepcopy(parts)))
    for view, before in views:
        after = [view.numbers, view.lengths, view.actions(), *(view.of(env) for env in range(num_envs))]
        for a, b in zip(before, after, strict=True):
            np.testing.assert_array_equal(a, b)


def test_a_log_knows_what_it_does_not_reach():
    """An episode that was lost before a checkpoint stays so until it ends, and the next one is whole."""
    log = ActionLog(np.array([3, 5]), np.array([-1, 2]), np.array([[7, 1], [7, 2]], np.uint8))
    assert log.view().lengths.tolist() == [-1, 2]
    log.append(np.array([[8, 3]], np.uint8), np.array([[False, False]]))
    assert (log.view().of(0), log.view().of(1).tolist()) == (None, [1, 2, 3])
    log.append(np.array([[9, 4], [10, 5]], np.uint8), np.array([[True, False], [False, False]]))
    assert log.view().numbers.tolist() == [4, 5]
    assert [log.view().of(env).tolist() for env in (0, 1)] == [[10], [1, 2, 3, 4, 5]]
