"""Which swaps are tried, and what is asked for when a model loses."""

from typing import Any, cast

import pytest

from forecaster.config import Config
from forecaster.core.fold import Fold
from forecaster.core.model import Model
from forecaster.core.promote import Reason
from forecaster.core.shadow import ROWS
from forecaster.core.trial import Losses
from forecaster.shell.metrics import Metrics
from forecaster.shell.training import Training
from forecaster.shell.trials import Trials
from tests.folds import SPEC, make_fold, make_model, play, walk

GOOD, NEW = make_model("good"), make_model("new", seed=2)


class Asked:
    """Notes what is asked for, in place of the control topic."""

    def __init__(self, **training: Any) -> None:
        self.config = Config(training=Config().training.model_copy(update=training))
        self.roll_backs: list[tuple[str, str, str]] = []

    def request_roll_back(self, version: str, instead_of: str, reason: str) -> None:
        self.roll_backs.append((version, instead_of, reason))


class Case:
    def __init__(self, series: int = 1, **training: Any) -> None:
        self.fold: Fold = make_fold(spare=ROWS)
        self.fold.swap(GOOD)
        for partition in range(series):
            play(self.fold, walk(f"s{partition}", 20), partition=partition)
        self.asked = Asked(**training)
        self.metrics = Metrics(horizon=SPEC.horizon, levels=SPEC.levels)
        self.trials = Trials(self.fold, self.metrics, cast("Training", self.asked))

    def swap(self, model: Model = NEW, before: Model = GOOD, reason: str = Reason.BETTER) -> None:
        self.fold.swap(model)
        self.trials.swapped(model, before, reason)

    def see(self, blocks: list[Losses]) -> None:
        """Let the shadow say what both have lost."""
        for block in blocks:
            if self.trials._shadow is not None:
                self.trials._shadow.turn = lambda block=block, **_: block  # type: ignore[method-assign]
            self.trials.turn(idle=True)

    @property
    def runs(self) -> bool:
        value = self.metrics.registry.get_sample_value("forecaster_trial_in_progress")
        assert (self.fold.watch is not None) == bool(value)
        return bool(value)

    def ended(self, outcome: str) -> float:
        labels = {"outcome": outcome}
        return self.metrics.registry.get_sample_value("forecaster_trials_total", labels) or 0.0


def test_a_model_that_loses_is_asked_back_with_the_reason() -> None:
    case = Case()
    case.swap()
    assert case.runs
    case.see([Losses(3.0, 2.0)] * 40)
    assert not case.runs
    assert case.ended("lost") == 1
    ((version, instead_of, reason),) = case.asked.roll_backs
    assert (version, instead_of) == ("good", "new")
    assert reason == "lost its trial against good: loss +50.0% on the same ticks"


def test_a_model_that_passes_stays() -> None:
    case = Case()
    case.swap()
    case.see([Losses(1.0, 1.0)] * 40)
    assert not case.runs
    assert case.ended("passed") == 1
    assert not case.asked.roll_backs


@pytest.mark.parametrize(
    ("before", "reason"),
    [
        (GOOD, "lost its trial against good: loss +50.0% on the same ticks"),
        (GOOD, "rollback"),
        (GOOD, "imported"),
        (make_model(""), Reason.BETTER),  # nothing served: a restart
        (make_model("other", spec=SPEC.model_copy(update={"hidden": 9})), Reason.BETTER),
    ],
)
def test_only_what_beat_a_model_of_its_shape_is_tried(before: Model, reason: str) -> None:
    case = Case()
    case.swap(before=before, reason=reason)
    assert not case.runs


def test_there_is_none_where_none_is_wanted() -> None:
    case = Case(trial_horizons=0)
    case.swap()
    assert not case.runs


def test_a_trial_that_is_not_wanted_any_more_ends_without_a_word_on_the_model() -> None:
    case = Case()
    case.swap()
    case.see([Losses(3.0, 2.0)] * 7)
    case.asked.config = Asked(trial_horizons=0).config
    case.see([Losses(3.0, 2.0)])
    assert not case.runs
    assert case.ended("unwanted") == 1
    assert not case.asked.roll_backs


def test_the_next_swap_ends_a_trial_and_may_begin_another() -> None:
    case = Case()
    case.swap()
    case.see([Losses(3.0, 2.0)] * 7)
    newer = make_model("newer", seed=3)
    case.swap(newer, NEW)
    assert case.runs
    assert case.ended("superseded") == 1
    case.see([Losses(3.0, 2.0)] * 7)
    assert not case.asked.roll_backs, "the blocks of the one before do not count"
    case.swap(NEW, newer, "rollback")
    assert not case.runs


def test_none_begins_where_there_is_no_series_to_try_it_on() -> None:
    case = Case(series=0)
    case.swap()
    assert not case.runs
    play(case.fold, walk("s", 20))
    case.trials.turn(idle=True)
    assert not case.runs


def test_a_trial_ends_when_the_last_of_its_partitions_leaves() -> None:
    case = Case(series=2)
    case.swap()
    for partition in range(2):
        case.trials.turn(idle=True)
        assert case.runs
        case.fold.drop(partition)
    case.trials.turn(idle=True)
    assert not case.runs
    assert case.ended("left") == 1
    assert not case.asked.roll_backs
