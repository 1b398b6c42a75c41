"""Who trains on which rows, in what order and with what weight; ranks are simulated by threads."""

import dataclasses
import itertools
import threading
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
import torch

from fabric_ppo.config import Config
from fabric_ppo.ppo.batch import Batch, Rows, make_batch
from fabric_ppo.process.group import Ranks
from fabric_ppo.rollouts.buffer import Rollout

CPU = torch.device("cpu")
# one-step advantages: r + gamma * V' * (1 - terminated) - V, without a sum over time
ONE_STEP = Config(gae_lambda=0.0, gamma=0.9)


def on_ranks(size, function):
    """`[function(ranks) for each rank]`, the ranks being threads that meet in `all_gather`."""
    slots, meet = [None] * size, threading.Barrier(size, timeout=20)

    def ranks(rank):
        def all_gather(tensor):
            slots[rank] = tensor
            meet.wait()
            gathered = torch.stack(slots)
            meet.wait()
            return gathered

        return Ranks(rank, size, all_gather)

    with ThreadPoolExecutor(size) as pool:
        return list(pool.map(lambda rank: function(ranks(rank)), range(size)))


def numbered(total, weights=None):
    """Rows whose advantages are their numbers."""
    number = torch.arange(total, dtype=torch.float64)
    weights = torch.ones(total, dtype=torch.float64) if weights is None else weights
    return Rows(number.unsqueeze(-1).expand(-1, 3), number.long(), number, number, number, number, weights)


def shares(rows, num_shares, per_rank_batch_size, epoch=0, update=0):
    """`[minibatch][share] -> Rows`."""
    batches = [Batch(rows, share, num_shares, 42, update) for share in range(num_shares)]
    each = [list(batch.minibatches(range(epoch, epoch + 1), per_rank_batch_size)) for batch in batches]
    assert {len(minibatches) for minibatches in each} == {batches[0].num_minibatches(per_rank_batch_size)}
    return [list(parts) for parts in zip(*each, strict=True)]


def numbers(rows):
    return rows.advantages.long().tolist()


SIZES = [(total, size, count) for total in (1, 2, 7, 12, 64, 101) for size in (1, 3, 8, 200) for count in (1, 2, 3, 5)]


@pytest.mark.parametrize(("total", "per_rank_batch_size", "num_shares"), SIZES)
def test_every_row_once_an_epoch_in_parts_of_even_size(total, per_rank_batch_size, num_shares):
    chunks = shares(numbered(total), num_shares, per_rank_batch_size)
    used = [number for chunk in chunks for part in chunk for number in numbers(part)]
    assert sorted(used) == list(range(total))
    assert len(chunks) == int(np.ceil(total / (num_shares * per_rank_batch_size)))
    chunk_sizes = [sum(len(numbers(part)) for part in chunk) for chunk in chunks]
    assert max(chunk_sizes) - min(chunk_sizes) <= 1
    for chunk in chunks:
        part_sizes = [len(numbers(part)) for part in chunk]
        assert max(part_sizes) - min(part_sizes) <= 1
        assert max(part_sizes) <= per_rank_batch_size


@pytest.mark.parametrize(("total", "per_rank_batch_size", "num_shares"), SIZES)
def test_the_mean_over_ranks_is_the_mean_over_the_chunk(total, per_rank_batch_size, num_shares):
    """What DDP averages: each rank's dot product with its weights."""
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
    minibatches = list(Batch(rows, 0, 1, 42, 3, together=2).minibatches(range(3), size))
    assert [numbers(part) for part in minibatches] == [list(range(12))] * 3
    assert all(torch.equal(part.sequences, rows.sequences) for part in minibatches)


@pytest.mark.parametrize("size", [4, 23])
@pytest.mark.parametrize("num_shares", [1, 2])
def test_epochs_of_a_stretch_follow_each_other(num_shares, size):
    """Several epochs at a time are the same minibatches as one after the other."""
    batch = Batch(numbered(23), num_shares - 1, num_shares, 42, 3)
    together = batch.minibatches(range(1, 4), size)
    alone = [part for epoch in range(1, 4) for part in batch.minibatches(range(epoch, epoch + 1), size)]
    assert len(together) == len(alone)
    for got, want in zip(together, alone, strict=True):
        assert all(torch.equal(a, b) for a, b in zip(got, want, strict=True))
    for column, parts in zip(together.rows, zip(*together, strict=True), strict=True):
        assert torch.equal(column, torch.cat(parts))


@pytest.mark.parametrize(("rows", "longest"), [(100, 7), (2**16, 4), (2**19, 1)])
def test_stretches_cover_all_epochs_within_their_memory(rows, longest):
    """Of seven epochs, as many at a time as fit into 16 MB, but at least one; a row here has 64 bytes."""
    batch = Batch(Rows(torch.zeros(rows, 4), *torch.zeros(6, rows, dtype=torch.float64)), 0, 1, 42, 0)
    stretches = batch.stretches(7, False)
    assert [epoch for epochs in stretches for epoch in epochs] == list(range(7))
    assert max(map(len, stretches)) == longest
    halved = dataclasses.replace(batch, num_shares=2).stretches(7, False)
    assert max(map(len, halved)) == min(7, 2 * longest if longest > 1 else 1)


def make_rollout(num_steps, num_envs, seed=0, dtype=torch.float64, invalid=False):
    """A rollout whose observations say (t, environment) and whose episodes end here and there."""
    torch.manual_seed(seed)
    shape = (num_steps, num_envs)
    t, env = torch.meshgrid(torch.arange(num_steps), torch.arange(num_envs), indexing="ij")
    log_probs, values, rewards, next_values = torch.randn(4, *shape, dtype=dtype)
    terminated, truncated = torch.rand(2, *shape) < 0.2
    valid = torch.rand(shape) < 0.7 if invalid else torch.ones(shape, dtype=torch.bool)
    return Rollout(
        obs=torch.stack([t, env], -1).to(torch.uint8),
        actions=1000 * t + env,
        log_probs=log_probs,
        importance=torch.ones_like(log_probs),
        values=values,
        rewards=rewards.float(),
        terminated=terminated,
        truncated=truncated,
        valid=valid,
        next_values=next_values,
        episodes=[],
        env_steps=int(valid.sum()),
        seconds=0.0,
        memory=torch.zeros(num_steps, num_envs, 0),
        begins=torch.zeros(shape, dtype=torch.bool),
        moments=torch.zeros(0),
        env_restarts=0,
        trail=None,
    )


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
    """What `make_batch` gives each of `size` ranks that has its slice of the environments."""
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
