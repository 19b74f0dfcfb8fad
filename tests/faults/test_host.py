"""What the machine and its operator do: full disks, signals at any time, trainers that die, hang and grow."""

import signal
import socket
import time
from contextlib import ExitStack
from pathlib import Path

import psutil
import pytest

from forecaster.shell.crash import Point
from tests.daemons import Worker
from tests.faults import oracle
from tests.faults.conftest import BOTH, MakeRig
from tests.faults.rig import STEPS, Rig

TRAINING = {"burn_in": 4, "span": 8, "steps": 20, "evaluate_every": 5, "cooldown_s": 0}

FULL = ["sh", "-c", 'exec "$@" >/dev/full 2>&1', "sh", "prlimit", "--fsize=0"]
"""A command prefix: no file can grow, nothing can be printed."""


def retrain(rig: Rig, worker: Worker) -> int:
    """Ask for a retrain; the trainer's process id."""
    began = len(worker.events("retrain_began"))
    worker.child.signal(signal.SIGUSR1)
    worker.await_that(lambda: len(worker.events("retrain_began")) > began)
    rig.tried += 1
    return worker.events("retrain_began")[-1]["pid"]


def outcome(worker: Worker, number: int) -> str:
    """What came of a retrain."""
    worker.await_that(lambda: len(worker.events("retrain_ended")) > number)
    return worker.events("retrain_ended")[number]["outcome"]


@pytest.mark.fault("T38")
def test_trainers_die_hang_and_grow_and_serving_goes_on(make_rig: MakeRig) -> None:
    training = TRAINING | {"time_limit_s": 2, "memory_limit_mb": 4096}
    with make_rig("exactly_once", settings={"training": training}) as rig:
        rig.load()
        worker = rig.start()
        rig.progress()
        psutil.Process(retrain(rig, worker)).kill()
        assert outcome(worker, 0) == "crashed"
        psutil.Process(retrain(rig, worker)).suspend()
        rig.progress()
        assert outcome(worker, 1) == "timed_out"
        worker.config.write_text(
            worker.config.read_text()
            .replace("memory_limit_mb = 4096", "memory_limit_mb = 256")
            .replace("time_limit_s = 2", "time_limit_s = 60")
        )
        worker.child.signal(signal.SIGHUP)
        worker.await_that(lambda: worker.events("configuration_reloaded"))
        retrain(rig, worker)
        assert outcome(worker, 2) == "out_of_memory"
        rig.progress()
        rig.verify()
        assert not list(oracle.consume(rig.servers, rig.topics.models))


@pytest.mark.catalogue
@pytest.mark.fault("T37")
def test_a_trainer_dies_between_a_model_and_its_serving_record(make_rig: MakeRig) -> None:
    with make_rig("at_least_once", settings={"training": TRAINING}) as rig:
        rig.load(500.0)
        worker = rig.start(fault_at=Point.MODEL_PUBLISHED)
        rig.progress(1000)
        retrain(rig, worker)
        assert outcome(worker, 0) == "crashed"
        published = {record.key for record in oracle.consume(rig.servers, rig.topics.models)}
        assert published
        assert b"serving" not in published
        rig.progress()
        rig.verify()


@pytest.mark.fault("T34")
@BOTH
def test_every_disk_is_full(make_rig: MakeRig, tmp_path: Path, delivery: str) -> None:
    """Temporary files, compiled programs (in a place of their own, so that there are some to write) and the log."""
    compiled = ["env", f"JAX_COMPILATION_CACHE_DIR={tmp_path / 'compiled'}"]
    with make_rig(delivery, settings={"training": TRAINING}) as rig:
        rig.load()
        worker = rig.start(prefix=[*FULL, *compiled])
        rig.progress()
        worker.child.signal(signal.SIGUSR1)
        worker.child.signal(signal.SIGUSR2)
        worker.await_that(
            lambda: any(b'"outcome"' in r.value for r in oracle.consume(rig.servers, rig.topics.control))
        )
        rig.progress()
        rig.verify()


@pytest.mark.catalogue
@pytest.mark.fault("T45")
@BOTH
def test_no_descriptor_is_left(make_rig: MakeRig, delivery: str) -> None:
    """Clients of its HTTP port hold as many as they can; its connections to the broker are cut meanwhile."""
    with make_rig(delivery) as rig, ExitStack() as held:
        rig.load()
        worker = rig.start(prefix=["prlimit", "--nofile=64"])
        rig.progress()
        for _ in range(100):
            held.enter_context(socket.create_connection(("127.0.0.1", worker.port), timeout=5))
        rig.proxy.reset()
        rig.tried += 1
        rig.progress()
        held.close()
        rig.verify()


@pytest.mark.catalogue
@pytest.mark.fault("T45")
@BOTH
def test_a_tenth_of_the_cpu_is_left(make_rig: MakeRig, delivery: str) -> None:
    with make_rig(delivery) as rig:
        rig.load(20.0)
        worker = rig.start()
        rig.progress()
        goal = rig.reader.count + 5 * STEPS
        while rig.reader.count < goal:  # bounded by the test's time
            for number, seconds in ((signal.SIGSTOP, 0.18), (signal.SIGCONT, 0.02)):
                worker.child.signal(number)
                time.sleep(seconds)
        rig.tried += 1
        rig.verify()


@pytest.mark.fault("T40")
@BOTH
def test_told_to_stop_in_each_phase(make_rig: MakeRig, delivery: str) -> None:
    with make_rig(delivery, settings={"training": TRAINING}) as rig:
        rig.load()
        starting = rig.start(ready=False)
        starting.await_that(lambda: starting.events("starting"))
        assert starting.end() == 0

        rig.proxy.refuse()
        waiting = rig.start(ready=False)
        waiting.await_that(lambda: waiting.events("no_broker"))
        assert waiting.end() == 0
        rig.heal()

        joining = rig.start(ready=False)
        joining.await_that(lambda: joining.events("compiled"))
        assert joining.end() == 0

        working = rig.start()
        rig.progress()
        trainer = retrain(rig, working)
        assert working.end() == 0
        assert not psutil.pid_exists(trainer)

        silenced = rig.start()
        rig.progress()
        rig.proxy.black_hole()
        assert silenced.end() == 0
        rig.heal()

        rig.tried += 5
        rig.start()
        rig.verify()
