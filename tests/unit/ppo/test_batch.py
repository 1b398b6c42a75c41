"""The rows that each rank trains on, their order and their weights; ranks are simulated by threads."""

from __future__ import annotations

import dataclasses
import itertools

import numpy as np
import pytest
import torch

from fabric_ppo.config import Config
from fabric_ppo.envs.make import make_envs
from fabric_ppo.fast.compiled_actor import ActorChoice
from fabric_ppo.ppo import batch as batch_file
from fabric_ppo.ppo.batch import Batch, Rows, make_batch, take
from fabric_ppo.process.group import ALONE
from fabric_ppo.rollouts.buffer import RolloutBuffer
from fabric_ppo.rollouts.collect import collect
from tests.fixtures.minibatches import SIZES, numbered, numbers, shares
from tests.fixtures.ranks import on_ranks
from tests.fixtures.recurrent import KINDS, make_recurrent, recurrent_config
from tests.fixtures.rollouts import make_rollout, rollouts
from tests.fixtures.toy_envs import toy_env

CPU = torch.device("cpu")


# one-step advantages: r + gamma * V' * (1 - terminated) - V, without a sum over time
ONE_STEP = Config(gae_lambda=0.0, gamma=0.9)


@pytest.mark.parametrize(("total", "per_rank_batch_size", "num_shares"), SIZES)
def test_the_mean_over_ranks_is_the_mean_over_the_chunk(total, per_rank_batch_size, num_shares):
    """DDP averages each rank's dot product with its weights."""
    torch.manual_seed(0)
    quantity = torch.randn(total, dtype=torch.float64)
    for chunk in shares(numbered(total), num_shares, per_rank_batch_size):
        averaged = sum(part.weights @ quantity[numbers(part)] for part in chunk) / num_shares
        plain = quantity[[number for part in chunk for number in numbers(part)]].mean()
        torch.testing.assert_close(averaged, plain, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize(("total", "per_rank_batch_size", "num_shares"), SIZES)
def test_shares_of_a_chunk_are_one_ranks_larger_minibatch(total, per_rank_batch_size, num_shares):
    """H2: W ranks with batch b cut and fill minibatches as one rank with batch W * b."""
    alone = [part for (part,) in shares(numbered(total), 1, num_shares * per_rank_batch_size)]
    split = shares(numbered(total), num_shares, per_rank_batch_size)
    assert [sorted(numbers(part)) for part in alone] == [
        sorted(itertools.chain(*(numbers(part) for part in chunk))) for chunk in split
    ]


def test_columns_stay_together():
    for chunk in shares(numbered(50), 3, 4):
        for part in chunk:
            assert all(torch.equal(part.obs[:, k], part.advantages) for k in range(3))
            for column in part[1:-2]:
                assert torch.equal(column.double(), part.advantages)
            assert part.actions.dtype == torch.int64


@pytest.mark.parametrize("dtype", [torch.uint8, torch.uint16, torch.uint32, torch.uint64, torch.bool, torch.float16])
@pytest.mark.parametrize("shape", [(), (2,)], ids=str)
def test_rows_are_of_any_type(dtype, shape):
    """PyTorch does not have every function for each type."""
    obs = torch.arange(6).to(dtype).view(-1, *[1] * len(shape)).expand(6, *shape).contiguous()
    rows = Rows(obs, *(torch.arange(6.0) for _ in Rows._fields[1:-1]))
    taken = take(rows, torch.tensor([3, 0]), 1)
    assert taken.obs.dtype == dtype
    assert taken.obs.tolist() == [obs[3].tolist(), obs[0].tolist()]
    assert taken.actions.tolist() == [3.0, 0.0]


def test_weights_of_rows_are_kept_in_proportion():
    weights = torch.tensor([0.0, 2.0] * 10, dtype=torch.float64)
    for chunk in shares(numbered(20, weights), 2, 4):
        size = sum(len(part.weights) for part in chunk)
        for part in chunk:
            torch.testing.assert_close(part.weights, weights[numbers(part)] * 2 / size, rtol=1e-15, atol=0)


def test_the_order_is_named_by_update_and_epoch():

    def order(update, epoch):
        return tuple(number for (part,) in shares(numbered(30), 1, 15, epoch, update) for number in numbers(part))

    orders = {(update, epoch): order(update, epoch) for update in range(3) for epoch in range(3)}
    assert len(set(orders.values())) == 9
    assert tuple(range(30)) not in orders.values()
    assert orders[1, 2] == order(1, 2)


@pytest.mark.parametrize("size", [12, 200])
def test_a_minibatch_of_all_rows_has_them_in_order(size):
    """In every epoch; the sequences of a recurrent agent too."""
    rows = numbered(12)._replace(sequences=torch.arange(6.0).unsqueeze(-1))
    minibatches = list(Batch(rows, 0, 1, 42, 3, sequence_length=2).minibatches(range(3), size))
    assert [numbers(part) for part in minibatches] == [list(range(12))] * 3
    assert all(torch.equal(part.sequences, rows.sequences) for part in minibatches)


@pytest.mark.parametrize("size", [4, 23])
@pytest.mark.parametrize("num_shares", [1, 2])
def test_epochs_of_a_stretch_follow_each_other(num_shares, size):
    """Several epochs at a time are the same minibatches as one after the other."""
    batch = Batch(numbered(23), num_shares - 1, num_shares, 42, 3)
    several = list(batch.minibatches(range(1, 4), size))
    alone = [part for epoch in range(1, 4) for part in batch.minibatches(range(epoch, epoch + 1), size)]
    assert len(several) == len(alone)
    for got, want in zip(several, alone, strict=True):
        assert all(torch.equal(a, b) for a, b in zip(got, want, strict=True))


@pytest.mark.parametrize(("rows", "longest"), [(100, 7), (2**16, 4), (2**19, 1)])
def test_stretches_cover_all_epochs_within_their_memory(rows, longest):
    """Of seven epochs, as many at a time as fit into 16 MB, but at least one; a row here has 64 bytes."""
    batch = Batch(Rows(torch.zeros(rows, 4), *torch.zeros(6, rows, dtype=torch.float64)), 0, 1, 42, 0)
    stretches = batch.stretches(7, False)
    assert [epoch for epochs in stretches for epoch in epochs] == list(range(7))
    assert max(map(len, stretches)) == longest
    halved = dataclasses.replace(batch, num_shares=2).stretches(7, False)
    assert max(map(len, halved)) == min(7, 2 * longest if longest > 1 else 1)


def slice_of(rollout, envs):
    tensors = {name: value[:, envs] for name, value in vars(rollout).items() if getattr(value, "ndim", 0) > 1}
    return dataclasses.replace(rollout, **tensors)


def raw_advantages(rollout):
    """One step of bootstrapping (gae_lambda = 0), in NumPy."""
    reward, value, following = (
        each.double().numpy() for each in (rollout.rewards, rollout.values, rollout.next_values)
    )
    return reward + 0.9 * np.where(rollout.terminated.numpy(), 0, following) - value


def expected_rows(rollout, normalize=True):
    """Rows of the whole rollout by the definition, `[T * N]` each, in canonical order."""
    advantages, valid = raw_advantages(rollout), rollout.valid.numpy()
    returns = advantages + rollout.values.numpy()
    if normalize:
        seen = advantages[valid]
        advantages = (advantages - seen.mean()) / (seen.std(ddof=0) + 1e-8)
    weights = valid / valid.mean()
    stored = (rollout.obs, rollout.actions, rollout.log_probs, rollout.values)
    computed = (torch.from_numpy(each) for each in (advantages, returns, weights))
    return Rows(*(each.flatten(0, 1) for each in (*stored, *computed)))


def assert_rows(got, want, tolerance=1e-12):
    for name, a, b in zip(Rows._fields, got, want, strict=True):
        torch.testing.assert_close(a, b, rtol=tolerance, atol=tolerance, msg=lambda text, name=name: f"{name}: {text}")


def batches(rollout, config, size, update=5):
    """The `make_batch` of each of `size` ranks, which has its slice of the environments."""
    num_envs = rollout.rewards.shape[1] // size

    def one(ranks):
        own = slice_of(rollout, slice(ranks.rank * num_envs, (ranks.rank + 1) * num_envs))
        return make_batch(own, config, ranks, update, CPU)

    return on_ranks(size, one)


@pytest.mark.parametrize("invalid", [False, True])
@pytest.mark.parametrize("normalize", [False, True])
@pytest.mark.parametrize(("size", "num_envs", "num_steps"), [(1, 3, 7), (2, 2, 5), (3, 1, 9), (3, 3, 4)])
def test_shared_rows_are_everybodys_in_canonical_order(size, num_envs, num_steps, normalize, invalid):
    """By t, then by global environment; every rank holds the same bits and has its own share of minibatches."""
    rollout = make_rollout(num_steps, size * num_envs, invalid=invalid)
    config = dataclasses.replace(ONE_STEP, share_data=True, normalize_advantages=normalize)
    got = batches(rollout, config, size)
    for rank, batch in enumerate(got):
        assert (batch.share, batch.num_shares, batch.seed, batch.update) == (rank, size, config.seed, 5)
        assert_rows(batch.rows, expected_rows(rollout, normalize))
        assert all(torch.equal(a, b) for a, b in zip(batch.rows, got[0].rows, strict=True))


@pytest.mark.parametrize("invalid", [False, True])
@pytest.mark.parametrize("normalize", [False, True])
@pytest.mark.parametrize(("size", "num_envs", "num_steps"), [(1, 3, 7), (2, 2, 5), (3, 1, 9), (3, 3, 4)])
def test_own_rows_are_normalised_over_all_ranks(size, num_envs, num_steps, normalize, invalid):
    rollout = make_rollout(num_steps, size * num_envs, invalid=invalid)
    config = dataclasses.replace(ONE_STEP, share_data=False, normalize_advantages=normalize)
    everything = expected_rows(rollout, normalize)
    got = batches(rollout, config, size)
    for rank, batch in enumerate(got):
        assert (batch.share, batch.num_shares, batch.seed, batch.update) == (0, 1, config.seed, 5)
        envs = slice(rank * num_envs, (rank + 1) * num_envs)
        columns = (c.unflatten(0, (num_steps, size * num_envs)) for c in everything[:-1])
        own = Rows(*(column[:, envs].flatten(0, 1) for column in columns))
        assert_rows(batch.rows, own)
    assert len({batch.num_minibatches(4) for batch in got}) == 1


@pytest.mark.parametrize("share_data", [False, True])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_moments_over_all_ranks(share_data, dtype):
    """Advantages have mean 0 and population deviation 1, weights mean 1, over the rows of all ranks."""
    config = dataclasses.replace(ONE_STEP, share_data=share_data)
    got = batches(make_rollout(6, 6, dtype=dtype, invalid=True), config, 3)
    parts = got[:1] if share_data else got
    advantages, weights = (
        torch.cat([getattr(part.rows, name) for part in parts]) for name in ("advantages", "weights")
    )
    assert advantages.dtype == weights.dtype == dtype
    seen, tolerance = advantages[weights > 0].double(), 1e-6 if dtype == torch.float32 else 1e-7
    assert len(seen) < len(advantages) == 36
    assert abs(seen.mean()) < tolerance
    assert abs(seen.std(correction=0) - 1) < tolerance
    assert abs(weights.double().mean() - 1) < tolerance


@pytest.mark.parametrize("share_data", [False, True])
def test_sums_are_in_float64(share_data):
    """Advantages far from zero: in float32 the mean of squares less the square of the mean would be noise."""
    rollout = make_rollout(6, 6, dtype=torch.float32)
    rollout = dataclasses.replace(rollout, rewards=rollout.rewards + 1e4)
    got = batches(rollout, dataclasses.replace(ONE_STEP, share_data=share_data), 3)
    advantages = torch.cat([batch.rows.advantages for batch in (got[:1] if share_data else got)])
    raw = torch.from_numpy(raw_advantages(rollout)).float().double()
    expected = (raw - raw.mean()) / (raw.std(correction=0) + 1e-8)
    torch.testing.assert_close(advantages.sort().values.double(), expected.flatten().sort().values, rtol=0, atol=2e-3)


@pytest.mark.parametrize("share_data", [False, True])
def test_rows_that_are_no_transition_change_nothing(share_data):
    config = dataclasses.replace(ONE_STEP, share_data=share_data)
    rollout = make_rollout(6, 4, invalid=True)
    disturbed = dataclasses.replace(rollout, rewards=torch.where(rollout.valid, rollout.rewards, 1e3))
    for before, after in zip(batches(rollout, config, 2), batches(disturbed, config, 2), strict=True):
        counts = before.rows.weights > 0
        assert not counts.all()
        assert (before.rows.weights[~counts] == 0).all()
        for a, b in zip(before.rows[:-1], after.rows[:-1], strict=True):
            torch.testing.assert_close(a[counts], b[counts], rtol=1e-12, atol=1e-12)


def test_equal_advantages_become_zero():
    """Population deviation 0: the 1e-8 keeps the division finite."""
    rollout = make_rollout(4, 2)
    level = dataclasses.replace(
        rollout, rewards=torch.full((4, 2), 2.0), values=rollout.values * 0, next_values=rollout.values * 0
    )
    (batch,) = batches(level, ONE_STEP, 1)
    assert torch.equal(batch.rows.advantages, torch.zeros(8, dtype=torch.float64))
    (single,) = batches(make_rollout(1, 1), ONE_STEP, 1)
    assert single.rows.advantages.tolist() == [0.0]


def test_deviation_is_larger_by_1e_8():
    """With a deviation of 1e-8 the normalised advantages are +-1/2."""
    rollout = make_rollout(2, 1)
    tiny = dataclasses.replace(
        rollout,
        rewards=torch.zeros(2, 1),
        values=torch.tensor([[1e-8], [-1e-8]], dtype=torch.float64),
        next_values=torch.zeros(2, 1, dtype=torch.float64),
    )
    (batch,) = batches(tiny, ONE_STEP, 1)
    assert batch.rows.advantages.tolist() == pytest.approx([-0.5, 0.5], rel=1e-9)


@pytest.mark.parametrize(
    ("terminated", "truncated", "expected"),
    [(False, False, 1.5 + 0.125 * 1.5), (False, True, 1.5), (True, False, 1.0)],
)
def test_lambda_and_flags_reach_the_advantages(terminated, truncated, expected):
    """Two steps by hand: A_0 = d_0 + gamma * lambda * d_1, cut where the first step ends an episode."""
    ones = torch.ones(2, 1, dtype=torch.float64)
    rollout = dataclasses.replace(
        make_rollout(2, 1),
        rewards=ones.float(),
        values=ones * 0,
        next_values=ones,
        terminated=torch.tensor([[terminated], [False]]),
        truncated=torch.tensor([[truncated], [False]]),
    )
    config = Config(gamma=0.5, gae_lambda=0.25, normalize_advantages=False)
    (batch,) = batches(rollout, config, 1)
    assert batch.rows.advantages.tolist() == batch.rows.returns.tolist() == [expected, 1.5]


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(("normalizes", "shared_trunk"), [(False, False), (True, True)])
def test_the_loss_sees_the_agent_that_acted(kind, normalizes, shared_trunk):
    """Before the first gradient step, sequence by sequence, in whatever order: ratios are 1, values the same."""
    config = recurrent_config(
        kind, env_id=toy_env(length=4, ends="truncated"), normalize_observations=normalizes, shared_trunk=shared_trunk
    )
    envs, agent = make_recurrent(config)
    for update, rollout in enumerate(rollouts(envs, agent, config.num_steps, 3, seed=config.seed)):
        batch = make_batch(rollout, config, ALONE, update, CPU)
        assert batch.num_minibatches(6) == 3
        for rows in batch.minibatches(range(2), 6):
            assert rows.sequences.shape == (2, agent.memory_size + 3)
            evaluation = agent(rows.obs, rows.actions, rows.sequences)
            torch.testing.assert_close(evaluation.log_probs, rows.log_probs)
            torch.testing.assert_close(evaluation.values, rows.values)
        agent.update_statistics(rollout.moments)
    envs.close()


@pytest.mark.parametrize("size", [2, 3])
def test_shared_data_is_cut_as_on_one_rank(size):
    """Ranks' sequences in canonical order: their shares make up the minibatches of one rank with all environments."""
    _, agent = make_recurrent(recurrent_config(env_id=toy_env(length=4)))

    def rows_of(ranks):
        config = recurrent_config(env_id=toy_env(length=4), share_data=True, num_envs=6 // ranks.size)
        envs = make_envs(config, ranks.rank, ranks.size)
        buffer = RolloutBuffer(envs, agent, config.num_steps, ActorChoice(agent))
        rollout = collect(agent, buffer, config.seed, 0)
        envs.close()
        batch = make_batch(rollout, config, ranks, 0, CPU)
        return list(batch.minibatches(range(1), 6 if ranks.size > 1 else 6 * size))

    (alone,), shared = on_ranks(1, rows_of), on_ranks(size, rows_of)
    for chunk, parts in zip(alone, zip(*shared, strict=True), strict=True):
        for name in ("obs", "actions", "log_probs", "sequences"):
            assert torch.equal(getattr(chunk, name), torch.cat([getattr(part, name) for part in parts])), name


@pytest.mark.parametrize(("total", "per_rank_batch_size", "num_shares"), SIZES)
def test_large_observations_are_permuted_minibatch_by_minibatch(total, per_rank_batch_size, num_shares, monkeypatch):
    """The minibatches are the same as those of small ones, but observations are copied one by one."""
    whole = [list(chunk) for chunk in shares(numbered(total), num_shares, per_rank_batch_size)]
    monkeypatch.setattr(batch_file, "_BYTES_AT_A_TIME", 0)
    for chunk, expected in zip(shares(numbered(total), num_shares, per_rank_batch_size), whole, strict=True):
        for part, same in zip(chunk, expected, strict=True):
            assert all(map(torch.equal, part, same))
    parts = list(Batch(numbered(40), 0, 1, 0, 0).minibatches(range(2), 5))
    assert len({part.obs.untyped_storage().data_ptr() for part in parts}) == len(parts) == 16
