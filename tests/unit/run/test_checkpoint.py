"""A folder of checkpoints: the newest are kept, and damaged ones are passed over."""

from __future__ import annotations

import pytest

from fabric_ppo.process.errors import ConfigError
from fabric_ppo.run.checkpoint import BEST, newest_first, newest_intact, save_checkpoint
from tests.fixtures.checkpoints import checkpoint_at


def names(folder) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def test_the_newest_are_kept_and_the_best(tmp_path):
    folder = tmp_path / "checkpoints"
    for update in range(1, 13):
        path = save_checkpoint(folder, update, checkpoint_at(update), keep=3, is_best=update in (2, 4))
        assert path.read_bytes() == checkpoint_at(update)
        newest = range(max(1, update - 2), update + 1)
        best = [BEST] if update >= 2 else []
        assert names(folder) == sorted([*(f"update_{each}.ckpt" for each in newest), *best])
    assert [path.name for path in newest_first(folder)] == ["update_12.ckpt", "update_11.ckpt", "update_10.ckpt"]
    assert (folder / BEST).read_bytes() == checkpoint_at(4)


def test_updates_are_numbers_not_words(tmp_path):
    """`update_9` is older than `update_10`, which is older than `update_100`."""
    for update in (9, 100, 10, 99, 1):
        (tmp_path / f"update_{update}.ckpt").write_bytes(checkpoint_at(update))
    for other in (BEST, "update_x.ckpt", "update_101.ckpt.damaged", ".update_102.ckpt.tmp", "update_103.ckpt.old"):
        (tmp_path / other).write_bytes(checkpoint_at(1000))
    expected = [f"update_{update}.ckpt" for update in (100, 99, 10, 9, 1)]
    assert [path.name for path in newest_first(tmp_path)] == expected
    assert newest_intact(tmp_path) == (checkpoint_at(100), [])
    save_checkpoint(tmp_path, 101, checkpoint_at(101), keep=2, is_best=False)
    assert [path.name for path in newest_first(tmp_path)] == ["update_101.ckpt", "update_100.ckpt"]


def test_the_next_write_removes_what_a_killed_one_left(tmp_path):
    (tmp_path / ".update_3.ckpt.tmp").write_bytes(b"half")
    save_checkpoint(tmp_path, 4, checkpoint_at(4), keep=3, is_best=False)
    assert names(tmp_path) == ["update_4.ckpt"]


@pytest.mark.parametrize("num_damaged", [1, 2])
def test_damaged_ones_are_passed_over_and_named(tmp_path, num_damaged):
    for update in (9, 10, 11):
        save_checkpoint(tmp_path, update, checkpoint_at(update), keep=3, is_best=False)
    damaged = [11, 10][:num_damaged]
    for update in damaged:
        (tmp_path / f"update_{update}.ckpt").write_bytes(checkpoint_at(update)[:-1])
    content, refused = newest_intact(tmp_path)
    assert content == checkpoint_at(11 - num_damaged)
    assert len(refused) == num_damaged
    for update, why in zip(damaged, refused, strict=True):
        assert why.startswith(f"{tmp_path}/update_{update}.ckpt: damaged")
    # put aside, so that they neither count among the newest nor are reported again
    again, refused = newest_intact(tmp_path)
    assert (again, refused) == (content, [])


def test_no_intact_checkpoint_is_an_error(tmp_path):
    """Neither at the first attempt nor at a later one, when the damaged have been put aside."""
    assert newest_intact(tmp_path / "no folder") == (b"", [])
    assert newest_intact(tmp_path) == (b"", [])
    for update in (3, 4):
        (tmp_path / f"update_{update}.ckpt").write_bytes(checkpoint_at(update)[:-1])
    for _ in range(2):
        with pytest.raises(ConfigError, match="no checkpoint is whole") as caught:
            newest_intact(tmp_path)
        assert all(f"update_{update}.ckpt" in str(caught.value) for update in (3, 4))


def test_a_checkpoint_that_cannot_be_read_is_named(tmp_path):
    (tmp_path / "update_7.ckpt").mkdir()
    save_checkpoint(tmp_path, 6, checkpoint_at(6), keep=3, is_best=False)
    content, (why,) = newest_intact(tmp_path)
    assert content == checkpoint_at(6)
    assert "update_7.ckpt" in why
