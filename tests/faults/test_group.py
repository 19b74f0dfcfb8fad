"""Workers that share a group: one sleeps and comes back, others come and go."""

import signal
from itertools import groupby

import pytest

from forecaster.core.model import Model
from forecaster.shell.kafka import KafkaSpec
from forecaster.shell.models import Models
from forecaster.shell.models.convert import to_stored
from tests.faults.conftest import BOTH, MakeRig
from tests.faults.rig import Rig
from tests.faults.watch import await_that
from tests.folds import SPEC, make_model


@pytest.mark.fault("T3", "T4")
def test_a_sleeper_wakes_up_when_another_has_its_partitions(make_rig: MakeRig) -> None:
    """It sleeps longer than the session, the poll interval and the transaction may last, and then goes on."""
    with make_rig("exactly_once") as rig:
        rig.load()
        sleeper = rig.start("a")
        heir = rig.start("b")
        heir.await_that(lambda: heir.events("partitions_rebuilt"))
        rig.progress()
        sleeper.child.signal(signal.SIGSTOP)
        held = {p for event in heir.events("partitions_assigned") for p in event["partitions"]}
        heir.await_that(
            lambda: held < {p for e in heir.events("partitions_rebuilt") for p in e["partitions"]}
        )
        before = rig.committed()
        await_that(lambda: all(at > before[p] for p, at in rig.committed().items()), "both go on", 60.0)
        sleeper.child.signal(signal.SIGCONT)
        sleeper.await_that(lambda: len(sleeper.events("partitions_rebuilt")) > 1)
        rig.tried += 1
        rig.progress()
        rig.verify()


@pytest.mark.fault("T5")
def test_of_two_with_one_identity_one_stops_and_says_why(make_rig: MakeRig) -> None:
    with make_rig("exactly_once") as rig:
        rig.load()
        older = rig.start("a")
        rig.progress()
        rig.start("a", ready=False)
        assert older.await_end(60.0) == 5
        assert "give each its own" in older.child.tail()
        rig.progress()
        rig.verify()


def serve(rig: Rig, model: Model) -> None:
    """Let it serve, and wait until all workers follow."""
    models = Models(KafkaSpec(bootstrap_servers=rig.servers), rig.topics.models)
    models.publish(to_stored(model))
    models.serve(model.version, "a test")
    for worker in rig.alive:
        worker.await_that(
            lambda w=worker: any(swap["version"] == model.version for swap in w.events("model_swapped"))
        )


@pytest.mark.catalogue
@pytest.mark.fault("T48")
@BOTH
def test_workers_of_two_configurations_serve_the_same_models(make_rig: MakeRig, delivery: str) -> None:
    """One is configured for the next network already; whatever serves, both do, and say so in each answer."""
    larger = SPEC.model_copy(update={"hidden": 12})
    with make_rig(delivery) as rig:
        rig.most_growth_mb = 400  # programs of both networks
        rig.load()
        older = rig.start("a")
        serve(rig, make_model("v1", 1))
        rig.progress()
        newer = rig.start("b", settings={"model": {"hidden": 12}})
        newer.await_that(lambda: newer.events("partitions_rebuilt"))
        assert not newer.events("model_does_not_fit")
        rig.progress()
        serve(rig, make_model("v2", 2, larger))
        rig.tried += 1
        rig.progress()
        assert older.end() == 0
        rig.progress()
        rig.verify()
        for seen in rig.reader.seen.values():
            models = [model for model, _ in groupby(seen, lambda one: one.model)]
            assert models in (["v1", "v2"], ["", "v1", "v2"])


@pytest.mark.fault("T15", "T16")
@BOTH
def test_workers_come_and_go(make_rig: MakeRig, storms: int, delivery: str) -> None:
    with make_rig(delivery, partitions=4) as rig:
        rig.load()
        rig.start("a")
        for number in range(storms):
            guest = rig.start("b")
            guest.await_that(lambda guest=guest: guest.events("partitions_rebuilt"))
            rig.progress()
            if number % 2:
                rig.kill(guest)
            else:
                assert guest.end() == 0
                rig.tried += 1
        before = rig.committed()
        await_that(lambda: all(at > before[p] for p, at in rig.committed().items()), "each goes on", 60.0)
        rig.verify()
