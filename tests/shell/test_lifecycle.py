"""What the report and the metrics say of models: nothing before there is one."""

from typing import cast

import pytest

from forecaster.config import Config
from forecaster.shell.lifecycle import Lifecycle
from forecaster.shell.metrics import Metrics
from forecaster.shell.models.codec import Serving
from forecaster.shell.models.convert import to_stored
from forecaster.shell.models.registry import NowServing
from forecaster.shell.signals import Signals
from forecaster.shell.state import StateTopic, Target
from forecaster.shell.training import Training
from tests.folds import SPEC, make_fold, make_model


class Taken:
    """A state topic on which everything is at once."""

    def follow(self, target: Target | None) -> bool:
        return target is not None


def test_swaps_are_those_after_which_another_model_serves() -> None:
    config, fold, metrics = Config(model=SPEC), make_fold(), Metrics(horizon=SPEC.horizon, levels=SPEC.levels)
    lifecycle = Lifecycle(config, fold, metrics, Training(config, metrics, Signals()))
    for partition in range(3):  # they are rebuilt, and nothing serves yet
        fold.swap(fold.model, partition)
    assert (lifecycle.status()["model"], lifecycle.status()["swaps"]) == ("", 0)
    lifecycle._target = Target(make_model("v1"), "a test")
    lifecycle.follow(cast("StateTopic", Taken()))
    assert lifecycle.status()["swaps"] == metrics.model_swaps._value.get() == 1


@pytest.mark.parametrize(("card", "made_s"), [({"made_s": 9.0}, 9.0), ({}, 5.0)])
def test_when_a_model_was_made_and_what_it_learned_from_last_are_told_apart(
    card: dict[str, float], made_s: float
) -> None:
    config, fold, metrics = Config(model=SPEC), make_fold(), Metrics(horizon=SPEC.horizon, levels=SPEC.levels)
    lifecycle = Lifecycle(config, fold, metrics, Training(config, metrics, Signals()))
    model = make_model("v1")
    model = model._replace(card=model.card.model_copy(update={"created_s": 5.0, **card}))
    lifecycle._target = Target(model, "a test")
    lifecycle.swapped()
    told = ("trained", "data_end")
    assert [
        metrics.registry.get_sample_value(f"forecaster_model_{what}_timestamp_seconds") for what in told
    ] == [made_s, 5.0]


def test_a_model_that_cannot_serve_here_is_counted_and_the_one_before_goes_on() -> None:
    config, fold, metrics = Config(model=SPEC), make_fold(), Metrics(horizon=SPEC.horizon, levels=SPEC.levels)
    lifecycle = Lifecycle(config, fold, metrics, Training(config, metrics, Signals()))
    other = make_model("other", spec=SPEC.model_copy(update={"horizon": SPEC.horizon + 1}))
    lifecycle._serve(NowServing(to_stored(other), Serving("other")))
    assert metrics.models_refused._value.get() == 1
    lifecycle.follow(cast("StateTopic", Taken()))
    assert lifecycle.status()["swaps"] == 0
