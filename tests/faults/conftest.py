"""What the fault tests share: one broker behind a proxy, seeds, and the mark that names the fault."""

from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest

from tests.faults.rig import Rig, Stage

HERE = Path(__file__).parent
MARKS = (
    pytest.mark.broker,
    pytest.mark.process,
    pytest.mark.slow,
)
TIMEOUT_S = 600  # in continuous integration; the whole catalogue has its own, which a mark would outrank

MakeRig = Callable[..., Rig]
BOTH = pytest.mark.parametrize(
    "delivery", [pytest.param("at_least_once", marks=pytest.mark.catalogue), "exactly_once"]
)
"""Both promises in the catalogue, the stricter one in continuous integration."""


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Mark the tests of this directory; leave those of the whole catalogue out where it was not asked for."""
    ours = [item for item in items if HERE in item.path.parents]
    for item in ours:
        for mark in MARKS:
            item.add_marker(mark)
    if not config.getoption("--catalogue"):
        for item in ours:
            item.add_marker(pytest.mark.timeout(TIMEOUT_S))
        left_out = [item for item in ours if item.get_closest_marker("catalogue")]
        items[:] = [item for item in items if item not in left_out]
        if left_out:
            config.hook.pytest_deselected(items=left_out)


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """Each test once for each seed."""
    if "seed" in metafunc.fixturenames:
        metafunc.parametrize("seed", metafunc.config.getoption("--fault-seed") or [1])


@pytest.fixture
def kills(pytestconfig: pytest.Config) -> int:
    """How often to kill where one may kill as often as one likes."""
    return pytestconfig.getoption("--kills")


@pytest.fixture
def storms(pytestconfig: pytest.Config) -> int:
    """How often workers come and go."""
    return pytestconfig.getoption("--storms")


@pytest.fixture(scope="session")
def stage(kafka_jars: None) -> Iterator[Stage]:
    """One broker and its proxy, healed after each test."""
    with ExitStack() as stack:
        yield Stage.enter(stack)


@pytest.fixture
def make_rig(stage: Stage, seed: int, tmp_path: Path, record_property: Any) -> Iterator[MakeRig]:
    """Makes the test's rig, on the shared broker unless a stage is given; says how many faults it has seen."""
    made: list[Rig] = []

    def make(delivery: str = "at_least_once", on: Stage | None = None, **settings: Any) -> Rig:
        made.append(Rig(on or stage, tmp_path, seed, delivery, **settings))
        print(f"fault seed {seed}: to repeat, --fault-seed={seed}")
        return made[-1]

    yield make
    record_property("tried", max(1, sum(rig.tried for rig in made)))
