"""Workers that die: at each point of their work, at any moment, while they train."""

import signal

import pytest

from forecaster.shell.crash import Point
from tests.faults.conftest import BOTH, MakeRig

WORK = [Point.POLLED, Point.FOLDED, Point.SENDING, Point.ACKNOWLEDGED, Point.OFFSETS_ASKED]
POINTS = {
    "at_least_once": [*WORK, Point.COMMITTED],
    "exactly_once": [*WORK, Point.OFFSETS_SENT, Point.END_ASKED, Point.COMMITTED],
}

LOOK_EVERY = 10  # kills; a look reads everything from its beginning, so it overlooks nothing before it


@pytest.mark.fault("T1")
@pytest.mark.parametrize("delivery", POINTS)
def test_killed_at_each_point_of_its_work(
    make_rig: MakeRig, pytestconfig: pytest.Config, delivery: str
) -> None:
    """In continuous integration the points at which the promises differ are enough for the weaker one."""
    points = POINTS[delivery]
    if delivery == "at_least_once" and not pytestconfig.getoption("--catalogue"):
        points = [Point.SENDING, Point.ACKNOWLEDGED, Point.COMMITTED]
    with make_rig(delivery) as rig:
        rig.load()
        for point in points:
            worker = rig.start(fault_at=f"{point}:{rig.random.randint(1, 20)}", ready=False)
            assert worker.await_end(120.0) == -signal.SIGKILL, worker.child.tail()
            rig.tried += 1
            rig.check()
        rig.start()
        rig.verify()


@pytest.mark.catalogue
@pytest.mark.fault("T2")
@BOTH
def test_killed_at_any_moment(make_rig: MakeRig, kills: int, delivery: str) -> None:
    with make_rig(delivery) as rig:
        rig.load()
        for kill in range(kills):
            worker = rig.start()
            rig.progress(rig.random.randint(1, 200))
            rig.kill(worker)
            if kill % LOOK_EVERY == 0:
                rig.check()
        rig.start()
        rig.verify()
