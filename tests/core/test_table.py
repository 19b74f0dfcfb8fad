"""The table against plain Python: rings, triangles, padding, memory of the write; and who owns which row."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from forecaster.core import table
from forecaster.core.table import KINDS, Index, Layout, Rows, SeriesSpec

HORIZON, CONTEXT, MEMORY = 3, 5, 7
LAYOUT = Layout(
    memory=MEMORY,
    context=CONTEXT,
    trace=3,
    carry=2,
    horizon=HORIZON,
    levels=3,
    waiting=5,
    running=4,
    lines=2,
    experts=2,
    regressors=2,
)
STEPS = 23
WRITE = jax.jit(table.write)


def change(step: int, batch: int) -> Rows:
    """What one step writes into `batch` rows: small numbers that tell step, row and place apart."""
    rng = np.random.default_rng(step)

    def values(kind: str, column: jax.Array) -> jax.Array:
        shape = column.shape[1:] if kind == "whole" else column.shape[2:]
        lead = (batch, HORIZON) if kind == "triangle" else (batch,)
        return jnp.asarray(rng.integers(0, 1000, (*lead, *shape)), jnp.float32)

    made = Rows(*map(values, KINDS.values(), table.empty(LAYOUT, 1)))
    return made._replace(count=jnp.full(batch, step + 1, jnp.int32))


def played(batch: int = 2, rows: int = 4) -> tuple[Rows, jax.Array, list[Rows]]:
    idx = jnp.asarray([2, 0][:batch], jnp.int32)
    state, changes = table.empty(LAYOUT, rows), [change(step, batch) for step in range(STEPS)]
    for one in changes:
        state = WRITE(state, idx, one)
    return state, idx, changes


def test_a_step_overwrites_columns_that_are_written_as_a_whole() -> None:
    state, idx, changes = played()
    for kind, column, newest in zip(KINDS.values(), state, changes[-1], strict=True):
        if kind == "whole":
            np.testing.assert_array_equal(table.whole(column, idx), newest)


def test_a_ring_gives_back_its_newest_values_by_lag() -> None:
    state, idx, changes = played()
    count = jnp.full(2, STEPS, jnp.int32)
    lags = jnp.broadcast_to(jnp.arange(1, MEMORY + 1), (2, MEMORY))
    found = table.lagged(state.value, idx, count, lags)
    expected = [changes[STEPS - lag].value for lag in range(1, MEMORY + 1)]
    np.testing.assert_array_equal(found, np.stack(expected, axis=1))


@pytest.mark.parametrize("count", [1, 3])
def test_a_lag_from_before_the_series_or_the_ring_reads_the_oldest_known(count: int) -> None:
    state, idx, changes = played()
    lags = jnp.asarray([[0, 1, count, count + 1, 100]] * 2)
    young = table.empty(LAYOUT, 4)
    for one in changes[:count]:
        young = WRITE(young, idx, one)
    found = table.lagged(young.value, idx, jnp.full(2, count), lags)
    newest, oldest = changes[count - 1].value, changes[0].value
    np.testing.assert_array_equal(found, np.stack([newest, newest, oldest, oldest, oldest], axis=1))
    full = table.lagged(state.value, idx, jnp.full(2, STEPS), lags[:, -1:])
    np.testing.assert_array_equal(full[:, 0], changes[STEPS - MEMORY].value)


def test_a_triangle_gives_each_step_what_was_forecast_for_it() -> None:
    """At step n comes due what was made h steps before for h steps ahead."""
    state, idx = table.empty(LAYOUT, 4), jnp.asarray([2, 0], jnp.int32)
    made: list[Rows] = []
    for step in range(STEPS):
        count = jnp.full(2, step, jnp.int32)
        due = table.due(state.waiting, idx, count, HORIZON)
        origin = table.origins(state.origin, idx, count, HORIZON)
        for h in range(1, min(step, HORIZON) + 1):
            np.testing.assert_array_equal(due[:, h - 1], made[step - h].waiting[:, h - 1])
            np.testing.assert_array_equal(origin[:, h - 1], made[step - h].origin)
        made.append(change(step, 2))
        state = WRITE(state, idx, made[-1])


def test_padding_writes_nothing_and_rows_that_are_not_named_stay() -> None:
    state, _, _ = played()
    idx = jnp.asarray([1, 4, 4], jnp.int32)  # the table has 4 rows
    after = table.write(state, idx, change(7, 3))
    others = np.array([0, 2, 3])
    for before, now in zip(state, after, strict=True):
        np.testing.assert_array_equal(now[others], before[others])
    assert int(after.count[1]) == 8
    copied = table.put(state, jnp.asarray([4]), table.take(state, jnp.asarray([0])))
    for before, now in zip(state, copied, strict=True):
        np.testing.assert_array_equal(now, before)


def test_rows_that_were_taken_are_put_back_as_they_were() -> None:
    state, idx, _ = played()
    moved = table.put(table.empty(LAYOUT, 4), idx, table.take(state, idx))
    for before, now in zip(state, moved, strict=True):
        np.testing.assert_array_equal(now, before)


def test_the_write_needs_no_memory_for_the_rows_it_does_not_touch() -> None:
    def needed(rows: int) -> int:
        state = jax.eval_shape(lambda: table.empty(LAYOUT, rows))
        idx = jax.ShapeDtypeStruct((8,), jnp.int32)
        like = jax.eval_shape(lambda: change(0, 8))
        compiled = jax.jit(table.write, donate_argnums=0).lower(state, idx, like).compile()
        memory = compiled.memory_analysis()
        assert memory is not None
        kept = sum(np.prod(c.shape) * c.dtype.itemsize for c in state)
        assert memory.alias_size_in_bytes >= kept  # in place: the table goes in and out without a copy
        return memory.temp_size_in_bytes

    assert needed(100_000) == needed(100)


# --- the index ---


def index(rows: int = 8, idle_s: float = 80.0) -> Index:
    return Index(SeriesSpec(max_series=rows, idle_s=idle_s))


def test_rows_are_allotted_lowest_first_and_never_twice() -> None:
    found = index()
    rows = [found.allot(0, f"s{i}") for i in range(8)]
    assert [series.row for series in rows if series] == list(range(8))
    assert len(found) == 8
    assert found.allot(0, "one too many") is None
    found.evict(0, "s3")
    again = found.allot(1, "late comer")
    assert again is not None
    assert (again.row, again.fresh) == (3, True)
    assert found.allotted == 9


def test_an_idle_series_leaves_by_event_time_alone() -> None:
    found = index()
    for name, time_s in (("idle", 0.0), ("busy", 95.0)):
        series = found.allot(0, name)
        assert series is not None
        series.clock.time_s = time_s
    found.watermark_s[0] = 0.0
    assert found.sweep(0, -np.inf) == 0
    found.watermark_s[0] = 9.0  # looked at only every eighth of idle_s
    assert found.sweep(0, 1000.0) == 0
    found.watermark_s[0] = 81.0
    assert found.sweep(0, 80.0) == 0  # exactly idle_s old: stays
    found.watermark_s[0] = 95.0
    assert found.sweep(0, 94.0) == 1
    assert list(found.partitions[0]) == ["busy"]
    assert (found.evicted, len(found)) == (1, 1)


def test_a_partition_that_leaves_takes_its_series_along_and_no_others() -> None:
    found = index()
    for partition, name in ((0, "a"), (1, "b"), (0, "c")):
        found.allot(partition, name)
    found.watermark_s |= {0: 5.0, 1: 6.0}
    assert found.drop(0) == 2
    assert found.drop(0) == 0
    assert found.partitions == {1: found.partitions[1]}
    assert found.watermark_s == {1: 6.0}
    assert len(found) == 1


def test_a_series_in_two_partitions_has_two_rows_and_is_told() -> None:
    found = index()
    one, other = found.allot(0, "a"), found.allot(1, "a")
    assert one is not None
    assert other is not None
    assert one.row != other.row
    assert found.split == {"a"}
    found.drop(1)
    assert found.split == set()


def test_a_series_that_moved_is_not_in_two_partitions() -> None:
    found = index()
    found.allot(0, "a")
    found.drop(0)
    found.allot(1, "a")
    assert found.split == set()


def test_lenders_are_those_that_have_taken_a_step() -> None:
    found = index()
    for name in "abc":
        series = found.allot(0, name)
        assert series is not None
        series.fresh = name == "b"
    assert found.stepped(0, 9).tolist() == [0, 2]
    assert found.stepped(0, 1).tolist() == [0]
    assert found.stepped(9, 9).tolist() == []
