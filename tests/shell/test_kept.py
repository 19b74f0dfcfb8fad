"""Programs on disk: read instead of made, made anew where a file is no good, apart where what makes them differs."""

import os
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.experimental.compilation_cache.compilation_cache import reset_cache

from forecaster.core import row, table
from forecaster.core.calls import Shape
from forecaster.core.model import ModelSpec, untrained
from forecaster.core.perceive import Steps
from forecaster.core.programs import COPIED, Key, Recipe, serving_of
from forecaster.core.table import Rows
from forecaster.shell.kept import UNREAD_S, from_disk, take_over

ROWS = 40
SPEC = ModelSpec(hidden=4, horizon=2, levels=(0.1, 0.5, 0.9), context_length=8, warm_up=2)
TAKE, PUT, ROUNDS = ("take", COPIED), ("put", COPIED), ("rounds", 2)
IDX = np.arange(COPIED, dtype=np.int32)


class Counted(Recipe):
    """A recipe that tells what was compiled by it."""

    made: list[Key] = []  # noqa: RUF012  (a dataclass's fields are annotated; this belongs to all)

    def __call__(self, key: Key) -> Any:
        self.made.append(key)
        return super().__call__(key)


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """Where programs are kept, in JAX's stead while the test lasts."""
    monkeypatch.setenv("JAX_COMPILATION_CACHE_DIR", str(tmp_path / "kept"))
    Counted.made.clear()
    take_over()
    reset_cache()
    yield tmp_path / "kept"
    jax.config.update("jax_enable_compilation_cache", True)
    reset_cache()


def recipe(rows: int = ROWS) -> Counted:
    return Counted(SPEC, rows, (Shape(2, 4, 1, 1),))


def rows() -> Rows:
    return Rows(*(column + 1 for column in table.empty(row.layout(SPEC), ROWS)))


def file_of(place: Path) -> Path:
    (file,) = place.iterdir()
    return file


def taken(program: Any) -> list[np.ndarray]:
    return [np.asarray(column) for column in program(rows(), IDX)]


def same(ours: list[np.ndarray], theirs: list[np.ndarray]) -> bool:
    return all(map(np.array_equal, ours, theirs))


def test_what_was_made_once_is_read_and_does_the_same(place: Path) -> None:
    made = from_disk(recipe())(TAKE)
    read = from_disk(recipe())(TAKE)
    assert Counted.made == [TAKE]
    assert read is not made
    assert same(taken(read), taken(made))
    assert same(taken(read), [np.asarray(column)[IDX] for column in rows()])


def test_what_no_start_has_read_for_long_is_removed_when_something_new_is_kept(place: Path) -> None:
    from_disk(recipe(ROWS + 1))(TAKE)
    forgotten = file_of(place)
    from_disk(recipe())(TAKE)
    (read,) = set(place.iterdir()) - {forgotten}
    long_ago_s = time.time() - UNREAD_S - 60
    for file in (forgotten, read):
        os.utime(file, (long_ago_s, long_ago_s))
    from_disk(recipe())(TAKE)  # reads it
    from_disk(recipe())(PUT)
    assert forgotten not in place.iterdir()
    assert read in place.iterdir()
    assert len(list(place.iterdir())) == 2


def test_a_program_of_many_functions_is_read_whole(place: Path) -> None:
    made, read = from_disk(recipe())(ROUNDS), from_disk(recipe())(ROUNDS)
    assert Counted.made == [ROUNDS]
    steps = Steps(
        *np.random.default_rng(0).random((3, 4, 2), np.float32),
        *np.ones((3, 4, 2), bool),
        np.zeros((4, 2, 0), np.float32),
    )
    arguments = serving_of(untrained(SPEC)), rows(), np.array([3, 1], np.int32), steps, np.int32(4)
    for ours, theirs in zip(
        jax.tree.leaves(read(*arguments)), jax.tree.leaves(made(*arguments)), strict=True
    ):
        assert np.array_equal(ours, theirs, equal_nan=True)


def test_what_is_read_writes_the_table_in_place(place: Path) -> None:
    from_disk(recipe())(PUT)
    put = from_disk(recipe())(PUT)
    assert Counted.made == [PUT]
    before = rows()
    address = before.value.unsafe_buffer_pointer()
    part = Rows(*(jnp.asarray(column)[IDX] * 3 for column in before))
    after = put(before, IDX, part)
    assert before.value.is_deleted()
    assert after.value.unsafe_buffer_pointer() == address
    assert np.array_equal(np.asarray(after.value)[IDX], np.asarray(part.value))


@pytest.mark.parametrize(
    "harm", [b"", b"nonsense", bytes(100), None], ids=["empty", "foreign", "zeros", "a bit"]
)
def test_what_is_damaged_is_made_anew_and_mended(place: Path, harm: bytes | None) -> None:
    made = from_disk(recipe())(TAKE)
    file = file_of(place)
    whole = file.read_bytes()
    file.write_bytes(whole[:-1] + bytes([whole[-1] ^ 1]) if harm is None else harm)
    assert same(taken(from_disk(recipe())(TAKE)), taken(made))
    assert Counted.made == [TAKE, TAKE]
    from_disk(recipe())(TAKE)
    assert Counted.made == [TAKE, TAKE]
    assert file_of(place) == file


def test_a_place_that_takes_nothing_costs_nothing_but_time(
    tmp_path: Path, place: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    place.write_text("a file where a directory should be")
    made = from_disk(recipe())(TAKE)
    assert same(taken(made), [np.asarray(column)[IDX] for column in rows()])
    assert "program_not_kept" in capsys.readouterr().out
    assert [file.name for file in tmp_path.iterdir()] == ["kept"]


def test_programs_of_other_makings_are_kept_apart(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from_disk(recipe())(TAKE)
    from_disk(recipe(rows=ROWS + 1))(TAKE)
    from_disk(recipe())(PUT)
    monkeypatch.setenv("XLA_FLAGS", "--xla_cpu_enable_fast_min_max=true")
    from_disk(recipe())(TAKE)
    assert Counted.made == [TAKE, TAKE, PUT, TAKE]
    assert len(list(place.iterdir())) == 4


def test_without_a_place_nothing_is_kept(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("JAX_COMPILATION_CACHE_DIR")
    wanted = recipe()
    assert from_disk(wanted) is wanted


def test_what_jax_keeps_we_do_not() -> None:
    wanted = recipe()
    assert from_disk(wanted) is wanted
