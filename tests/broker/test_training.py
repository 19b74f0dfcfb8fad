"""A fleet with predictors and trainers on Apache Kafka: who asks, who trains, and what all of them know."""

import json
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from click.testing import Result
from typer.testing import CliRunner

from forecaster import cli
from forecaster.config import Config
from forecaster.errors import BrokerError, DataError
from forecaster.shell.control import Answer, Command, ControlFollower, Controls, Request
from forecaster.shell.kafka.sink import Sink
from forecaster.shell.metrics import Metrics
from forecaster.shell.models import Models
from forecaster.shell.signals import Signals
from forecaster.shell.trainers import TrainingWorker
from forecaster.shell.training import Training
from tests.broker.workers import fresh_topics, spec_for, until
from tests.shell.test_models import model

TELLS = """
import sys, json
job = json.loads(sys.stdin.readline())
print(json.dumps({"stage": "end", "outcome": "rejected", "message": json.dumps(job["spans"])}))
"""
HANGS = "import sys, time\nsys.stdin.readline()\ntime.sleep(600)"


class Fleet:
    """Workers of one group; those that predict are here without their ticks."""

    def __init__(self, kafka: str) -> None:
        self.config = Config(kafka=spec_for(kafka), topics=fresh_topics(kafka, partitions=1))
        self.controls = Controls(self.config.kafka, self.config.topics.control)
        self._closing: list[Callable[[], None]] = [self.controls.close]

    def training(self, program: str = TELLS) -> Training:
        made = Training(self.config, self._metrics(), Signals(), (sys.executable, "-c", program))
        self._closing.append(made.stop)
        return made

    def trainer(self, program: str = TELLS) -> TrainingWorker:
        """One that is turned by the test; `drain` ends it."""
        training = Training(self.config, self._metrics(), Signals(), (sys.executable, "-c", program))
        return TrainingWorker(self.config, None, Signals(), training._metrics, training)

    def ask(self, command: Command = Command.RETRAIN, **arguments: object) -> str:
        request = Request(command=command, trigger="cli", sender="me", arguments=arguments)
        self.controls.write(request)
        return request.id

    def answer(self, request_id: str, *turns: Callable[[], object]) -> Answer:
        """What came of a request, as its sender sees it."""
        follower = ControlFollower(self.config.kafka, self.config.topics.control, start="beginning")
        try:
            until(lambda: request_id in follower.inbox.answers, lambda: follower.poll(0.02), *turns)
            return follower.inbox.answers[request_id]
        finally:
            follower.close()

    def close(self) -> None:
        for close in self._closing:
            close()

    def _metrics(self) -> Metrics:
        return Metrics(horizon=self.config.model.horizon, levels=self.config.model.levels)


@pytest.fixture
def fleet(kafka: str) -> Iterator[Fleet]:
    made = Fleet(kafka)
    yield made
    made.close()


def began(worker: TrainingWorker) -> int:
    return sum(int(child._value.get()) for child in worker.metrics.retrains.values())


def test_a_predictor_asks_and_the_one_trainer_that_leads_trains(fleet: Fleet) -> None:
    predictor, trainers = fleet.training(), (fleet.trainer(), fleet.trainer())

    def turns() -> None:
        predictor.poll(decides=True, leads=False, serving=False)
        for trainer in trainers:
            trainer.turn()

    until(lambda: all(not trainer.missing() for trainer in trainers), turns)
    assert sum(trainer.election.won for trainer in trainers) == 1
    until(lambda: predictor.status()["last_retrain"] is not None, turns)
    (told,) = [dict(predictor.status())["last_retrain"]]
    assert told["outcome"] == "rejected"  # type: ignore[index]
    assert predictor.status()["retraining"] is False
    leader = next(trainer for trainer in trainers if trainer.election.won)
    assert [began(trainer) for trainer in trainers] == [int(trainer is leader) for trainer in trainers]

    leader.drain()
    (heir,) = (trainer for trainer in trainers if trainer is not leader)
    assert fleet.answer(fleet.ask(), heir.turn).outcome == "rejected"
    assert began(heir) == 1
    heir.drain()


def test_a_request_waits_for_somebody_who_leads_and_a_stopped_trainer_says_so(fleet: Fleet) -> None:
    asked = fleet.ask()
    follows = fleet.training(HANGS)
    until(lambda: follows.known, lambda: follows.poll(decides=False, leads=False, serving=True))
    assert follows.status()["retraining"] is False
    until(
        lambda: follows.status()["retraining"] is True,
        lambda: follows.poll(decides=False, leads=True, serving=True),
    )
    follows.stop()
    assert fleet.answer(asked).outcome == "cancelled"


def test_what_is_annotated_is_left_out_by_whoever_trains(fleet: Fleet) -> None:
    fleet.ask(Command.ANNOTATE, series="s1", start_s=10.0, end_s=20)
    fleet.ask(Command.ANNOTATE, series="", start_s="not a time", end_s=20.0)
    fleet.ask(Command.ANNOTATE, start_s=30.0, end_s=40.0)
    withdrawn = fleet.ask(Command.ANNOTATE, series="s2", start_s=50.0, end_s=60.0)
    fleet.ask(Command.WITHDRAW, id=withdrawn)
    trains = fleet.training()
    told = fleet.answer(fleet.ask(), lambda: trains.poll(decides=False, leads=True, serving=True))
    assert told.message == '[["s1", 10.0, 20.0], ["", 30.0, 40.0]]'


@pytest.mark.parametrize("command", ["annotations", "models"])
def test_a_list_of_a_topic_that_is_not_there_names_topic_and_broker(kafka: str, command: str) -> None:
    environ = {"FORECASTER_KAFKA__BOOTSTRAP_SERVERS": kafka} | {
        f"FORECASTER_TOPICS__{role}": f"no-{role.lower()}" for role in ("CONTROL", "MODELS")
    }
    with pytest.raises(BrokerError, match=rf"there is no topic 'no-\w+' at {kafka}: see forecaster check"):
        CliRunner().invoke(cli.app, [command, "list"], env=environ, catch_exceptions=False)


def test_annotations_are_listed_and_withdrawn_by_commands(fleet: Fleet, tmp_path: Path) -> None:
    path = tmp_path / "forecaster.toml"
    servers, control = fleet.config.kafka.bootstrap_servers, fleet.config.topics.control
    path.write_text(f'[kafka]\nbootstrap_servers = "{servers}"\n[topics]\ncontrol = "{control}"\n')

    def call(*arguments: str) -> Result:
        return CliRunner().invoke(cli.app, [*arguments, "--config", str(path)], catch_exceptions=False)

    def listed() -> list[tuple[str, float, float]]:
        lines = map(json.loads, call("annotations", "list", "--json").stdout.splitlines())
        return [(line["series"], line["start_s"], line["end_s"]) for line in lines]

    assert call("annotations", "list").stdout == "nothing is left out of training\n"
    junk = Sink(fleet.config.kafka)
    junk.send(control, b"junk", b"")
    assert junk.flush(10.0)
    junk.close(1.0)
    fleet.ask(Command.ANNOTATE, start_s="not a time", end_s=20.0)
    for span in (["--series", "[b]", "--start", "10", "--end", "20"], ["--start", "30", "--end", "40"]):
        assert call("annotate", *span).exit_code == 0
    assert listed() == [("[b]", 10.0, 20.0), ("", 30.0, 40.0)]
    (first, _) = (
        json.loads(line)["id"] for line in call("annotations", "list", "--json").stdout.splitlines()
    )
    shown = call("annotations", "list").stdout
    assert first in shown
    assert "[b]" in shown

    withdrawn = call("annotations", "withdraw", first, first)
    assert withdrawn.stdout.count("trained on again from the next retrain on: [b] from 1970-01-01") == 1
    assert listed() == [("", 30.0, 40.0)]
    trains = fleet.training()
    told = fleet.answer(fleet.ask(), lambda: trains.poll(decides=False, leads=True, serving=True))
    assert told.message == '[["", 30.0, 40.0]]'
    with pytest.raises(DataError, match=f"there is no annotation '{first}'"):
        call("annotations", "withdraw", first)


def test_a_roll_back_is_done_once_and_answered(fleet: Fleet) -> None:
    models = Models(fleet.config.kafka, fleet.config.topics.models)
    for version in ("v1", "v2"):
        models.publish(model(version))
        models.serve(version, "test")
    first, second = fleet.training(), fleet.training()
    asked = fleet.ask(Command.ROLL_BACK)
    told = fleet.answer(asked, lambda: first.poll(decides=False, leads=True, serving=True))
    assert (told.outcome, told.message) == ("rolled_back", "v1")
    later = fleet.ask(Command.ROLL_BACK, version="nonsense")
    told = fleet.answer(later, lambda: second.poll(decides=False, leads=True, serving=True))
    assert told.outcome == "failed"
    served = models.fetch()
    assert served is not None
    assert served.version == "v1"


def test_a_roll_back_instead_of_what_no_longer_serves_changes_nothing(fleet: Fleet) -> None:
    models = Models(fleet.config.kafka, fleet.config.topics.models)
    for version in ("v1", "v2", "v3"):
        models.publish(model(version))
        models.serve(version, "test")
    leads = fleet.training()

    def told(instead_of: str) -> tuple[str, str]:
        asked = fleet.ask(Command.ROLL_BACK, version="v1", instead_of=instead_of, reason="it lost")
        answer = fleet.answer(asked, lambda: leads.poll(decides=False, leads=True, serving=True))
        return answer.outcome, answer.message

    assert told("v2") == ("superseded", "v3")
    assert told("v3") == ("rolled_back", "v1")
    assert told("v3") == ("rolled_back", "v1"), "another worker found out, too"
    serving = models.read().serving
    assert serving is not None
    assert (serving.version, serving.previous, serving.reason) == ("v1", "v3", "it lost")


def test_drift_that_others_asked_for_counts_also_after_a_restart(fleet: Fleet) -> None:
    hour = fleet.config.training.drift_per_hour
    for number in range(hour):
        request = Request(
            command=Command.RETRAIN, trigger="drift", sender="other", arguments={"event_s": 100.0 * number}
        )
        fleet.controls.write(request)
        fleet.controls.write(Answer(id=request.id, outcome="rejected", sender="other"))
    came_in = fleet.training()
    until(lambda: came_in.known, lambda: came_in.poll(decides=False, leads=False, serving=True))
    came_in.observe(1, 1000.0)
    for error in [1.0] * 40 + [3.0] * 40:
        came_in.observe_errors(1000 * error, 1000)
    assert came_in._metrics.drift_detections._value.get() == 0
    came_in.observe(1, 1000.0 + 3600)
    came_in.observe_errors(3000.0, 1000)
    assert came_in._metrics.drift_detections._value.get() == 1
    came_in.poll(decides=False, leads=False, serving=True)
    until(
        lambda: any(
            request.arguments == {"event_s": 4600.0} for request in came_in._control.inbox.open.values()
        ),
        lambda: came_in.poll(decides=False, leads=False, serving=True),
    )
