"""Who gets to serve: the table of decisions, and whole retrains of histories whose truth is known."""

from functools import cache

import jax.numpy as jnp
import numpy as np
import pytest

from forecaster.core import model, stats
from forecaster.core.descent import TrainSpec
from forecaster.core.history import Role, Slice, Span, prepare
from forecaster.core.model import Card, Model, ModelSpec, untrained
from forecaster.core.promote import (
    Losses,
    PromoteSpec,
    Reason,
    Retrained,
    decide,
    in_place,
    retrain,
    too_short,
)
from forecaster.core.train import LEAST_ORIGINS, Failure, holdout_loss

SPEC = PromoteSpec(margin_ratio=0.01)
SHAPE = ModelSpec(hidden=8, horizon=3, warm_up=8, context_length=32, dropout=0.0, covariates=("driver",))
TRAIN = TrainSpec(burn_in=16, span=32, steps=100, learning_rate=5e-3, patience=2)


@pytest.mark.parametrize(
    ("candidate", "last_value", "serving", "reason"),
    [
        (0.70, 1.00, 0.80, Reason.BETTER),
        (0.793, 1.00, 0.80, Reason.NOT_BETTER),  # better, but by less than the margin
        (0.90, 1.00, 0.80, Reason.NOT_BETTER),
        (1.10, 1.00, 1.50, Reason.WORSE_THAN_LAST_VALUE),  # better than what serves is not enough
        (1.00, 1.00, None, Reason.WORSE_THAN_LAST_VALUE),
        (0.99, 1.00, None, Reason.FIRST),
        (0.99, 1.00, float("nan"), Reason.BETTER),  # whatever beats the last value beats a broken model
        (float("nan"), 1.00, 0.80, Reason.NON_FINITE),
        (float("inf"), 1.00, None, Reason.NON_FINITE),
        (0.70, float("nan"), None, Reason.NON_FINITE),
    ],
)
def test_the_table_of_decisions(
    candidate: float, last_value: float, serving: float | None, reason: Reason
) -> None:
    decision = decide(Losses(candidate, last_value, serving), SPEC)
    assert decision.reason is reason
    assert decision.promote == (reason in {Reason.BETTER, Reason.FIRST})


def test_what_cannot_be_compared_is_replaced_by_what_beats_the_last_value() -> None:
    assert decide(Losses(0.9, 1.0, None), SPEC, replaces=True).reason is Reason.REPLACES
    assert not decide(Losses(1.1, 1.0, None), SPEC, replaces=True).promote


@pytest.mark.parametrize(
    ("newest", "older", "reason"),
    [
        ((0.70, 0.80), (0.70, 0.70), Reason.BETTER),
        ((0.70, 0.80), (0.85, 0.70), Reason.BETTER),  # 21 % worse, but 12.5 % better and 10 % allowed
        ((0.70, 0.80), (0.86, 0.70), Reason.FORGETS),
        ((0.79, 0.80), (0.78, 0.70), Reason.FORGETS),
        ((0.80, 0.80), (0.50, 0.70), Reason.NOT_BETTER),  # what it knows of old does not promote it
        ((0.40, 2.00), (1.10, 0.70), Reason.BETTER),  # the world has changed for good
        ((0.70, 0.80), (0.02, 0.01), Reason.BETTER),  # next to nothing moved there
        ((0.70, 0.80), (float("nan"), 0.70), Reason.FORGETS),
        ((0.70, 0.80), (0.70, float("nan")), Reason.BETTER),
        ((0.70, float("nan")), (0.90, 0.70), Reason.BETTER),
    ],
)
def test_who_loses_more_on_the_older_stretch_than_is_gained_forgets(
    newest: tuple[float, float], older: tuple[float, float], reason: Reason
) -> None:
    candidate, serving = newest
    decision = decide(Losses(candidate, 1.0, serving, *older), PromoteSpec(forget_ratio=0.1))
    assert decision.reason is reason
    assert decision.promote == (reason is Reason.BETTER)


def sines(steps: int = 400, series: int = 6) -> list[Slice]:
    """A daily cycle by the hour, in noise, at very different magnitudes."""
    rng = np.random.default_rng(3)
    t = np.arange(steps)
    return [
        Slice(
            f"s{i}", 1.7e9 + 3600.0 * t, 10.0 ** (2 * i - 5) * (7 + np.sin(2 * np.pi * t / 24 + i) + 0.2 * n)
        )
        for i in range(series)
        for n in [rng.normal(size=steps)]
    ]


def walks(steps: int = 400, series: int = 6) -> list[Slice]:
    rng = np.random.default_rng(4)
    return [
        Slice(f"w{i}", 1.7e9 + 60.0 * np.arange(steps), np.cumsum(rng.normal(size=steps)))
        for i in range(series)
    ]


@cache
def first() -> Retrained:
    result = retrain(sines(), TRAIN, SHAPE, SPEC)
    assert isinstance(result, Retrained)
    return result


def serving(trained: Model, version: str = "v1") -> Model:
    return trained._replace(card=Card(version=version))


@pytest.mark.slow
def test_on_noisy_cycles_the_first_network_beats_the_last_value_by_far() -> None:
    decision = first().decision
    assert decision.reason is Reason.FIRST
    assert decision.losses.serving is None
    assert decision.losses.candidate < 0.6 * decision.losses.last_value
    assert 24 in first().model.periods.tolist()
    assert 0 < first().origins["holdout"] < first().origins["train"]


@pytest.mark.slow
def test_on_random_walks_it_is_at_most_a_hundredth_worse_than_the_last_value() -> None:
    result = retrain(walks(), TRAIN, SHAPE, SPEC)
    assert isinstance(result, Retrained)
    assert result.decision.losses.candidate < 1.01 * result.decision.losses.last_value
    # and the mix begins with less of it than of one that knows cycles
    assert result.model.card.first_share < 0.8 < first().model.card.first_share


def test_the_serving_model_is_judged_on_the_same_origins() -> None:
    again = retrain(sines(), TRAIN, SHAPE, SPEC, serving(first().model))
    assert isinstance(again, Retrained)
    assert again.decision.losses.serving == pytest.approx(first().decision.losses.candidate, rel=1e-5)
    assert again.decision.losses.candidate <= again.decision.losses.serving
    assert again.model.card.parent == "v1"


@pytest.mark.slow
def test_what_has_seen_the_holdout_is_not_judged_on_it() -> None:
    """What serves was taught what was held out; compared is what it was before."""
    model = first().model
    assert model.judged is not None
    assert any(
        (np.asarray(model.params[name]) != np.asarray(model.judged[name])).any() for name in model.params
    )
    ruined = serving(model)._replace(params={name: 0 * param for name, param in model.params.items()})
    again = retrain(sines(), TRAIN, SHAPE, SPEC, ruined)
    assert isinstance(again, Retrained)
    assert again.decision.losses.serving == pytest.approx(first().decision.losses.candidate, rel=1e-5)


@pytest.mark.slow
def test_a_model_of_other_seasons_is_judged_with_its_own() -> None:
    """Its loss changes with its periods, so they are what its inputs are made of."""
    blind = serving(first().model)._replace(periods=jnp.zeros(6, jnp.int32))
    result = retrain(sines(), TRAIN, SHAPE, SPEC, blind)
    assert isinstance(result, Retrained)
    assert result.decision.losses.serving is not None
    assert result.decision.losses.serving > 1.02 * first().decision.losses.candidate


@pytest.mark.slow
def test_a_planted_worse_model_is_replaced() -> None:
    params = model.init(SHAPE, 7) | {"out.bias": jnp.full(3 * len(SHAPE.levels), 20.0)}
    planted = Model(SHAPE, params, jnp.zeros(6, jnp.int32), Card(version="planted"))
    result = retrain(sines(), TRAIN, SHAPE, SPEC, planted)
    assert isinstance(result, Retrained)
    assert result.decision.reason is Reason.BETTER


@pytest.mark.slow
def test_a_candidate_that_never_saw_what_the_serving_model_knows_is_refused() -> None:
    """Cycles only where the older stretch is, which the serving model was made for; noise everywhere else."""
    rng = np.random.default_rng(6)
    noises = [part._replace(value=rng.normal(size=400)) for part in sines()]
    train = TRAIN.model_copy(update={"holdout_ratio": 0.35, "warm_start": False})
    older = slice(
        112, 148
    )  # of 260 steps that train, a quarter of 140 in the middle, and what cannot be trained on
    history = []
    for cycle, noise in zip(sines(), noises, strict=True):
        value = noise.value.copy()
        value[older] = 3 * ((cycle.value - cycle.value.mean()) / cycle.value.std())[older]
        history.append(noise._replace(value=value))
    result = retrain(history, train, SHAPE, SPEC, serving(first().model))
    assert isinstance(result, Retrained)
    assert result.decision.reason is Reason.FORGETS
    assert result.origins["older"] == 35 * len(history)
    generous = PromoteSpec(forget_ratio=100.0)
    assert decide(result.decision.losses, generous).reason is Reason.BETTER


@pytest.mark.slow
def test_a_model_without_a_version_does_not_serve() -> None:
    result = retrain(sines(), TRAIN, SHAPE, SPEC, untrained(SHAPE))
    assert isinstance(result, Retrained)
    assert result.decision.reason is Reason.FIRST


@pytest.mark.slow
@pytest.mark.parametrize("other", [{"horizon": 5}, {"covariates": ()}])
def test_a_model_of_another_horizon_or_other_covariates_is_replaced_without_comparison(
    other: dict[str, object],
) -> None:
    old = untrained(SHAPE.model_copy(update=other))._replace(card=Card(version="old"))
    result = retrain(sines(), TRAIN, SHAPE, SPEC, old)
    assert isinstance(result, Retrained)
    assert result.decision.reason is Reason.REPLACES


def driven(steps: int = 400, series: int = 4) -> list[Slice]:
    """Each value is what the covariate was three steps before, and a little noise; in other units in every series."""
    rng = np.random.default_rng(5)
    drivers = [rng.normal(size=(steps, 1)) for _ in range(series)]
    return [
        Slice(
            f"d{i}",
            1.7e9 + 60.0 * np.arange(steps),
            10.0**i * (5 + np.roll(driver[:, 0], 3) + 0.2 * rng.normal(size=steps)),
            10.0 ** (3 - 2 * i) * (driver - 2),
        )
        for i, driver in enumerate(drivers)
    ]


@pytest.mark.slow
def test_what_follows_a_covariate_is_foretold_by_the_network_that_sees_it() -> None:
    """As far ahead as it tells: for the third step now, for the first one from memory."""
    spec = TRAIN.model_copy(update={"steps": 300, "learning_rate": 2e-2, "patience": 4})
    losses = []
    for history in (driven(), [part._replace(covariates=None) for part in driven()]):
        result = retrain(history, spec, SHAPE, SPEC)
        assert isinstance(result, Retrained)
        losses.append(result.decision.losses.candidate)
    assert losses[0] < 0.4 * losses[1]


@pytest.mark.slow
def test_a_network_whose_covariate_stops_is_about_as_good_as_one_that_never_had_any() -> None:
    spec = TRAIN.model_copy(update={"steps": 300, "learning_rate": 2e-2, "patience": 4})
    losses, history = list[float](), driven(2000)
    for known in (history, [part._replace(covariates=None) for part in history]):
        result = retrain(known, spec, SHAPE, SPEC)
        assert isinstance(result, Retrained)
        stopped = [
            part._replace(covariates=np.where(np.arange(2000)[:, None] < 1600, part.covariates, np.nan))
            for part in history
        ]
        judged = prepare(stopped, spec, SHAPE, np.asarray(result.model.periods))
        losses.append(holdout_loss(result.model.as_judged, judged, spec))
    assert losses[0] < 1.1 * losses[1]


def test_that_all_series_are_too_short_is_said_with_the_length_from_which_one_is_trained_on() -> None:
    def trained_on(steps: int) -> int:
        history = walks(steps=steps, series=300)
        periods = np.zeros(stats.SEASONS, np.int32)
        return prepare(history, TRAIN, SHAPE, periods).count(Role.TRAIN)

    least = next(steps for steps in range(8, 30) if trained_on(steps))
    assert retrain(walks(steps=least - 1, series=300), TRAIN, SHAPE) is Failure.NO_DATA
    said = too_short(walks(steps=least - 1, series=300), TRAIN, SHAPE)
    assert said.startswith(
        f"the longest series has {least - 1} steps, and none is trained on below {least}: "
    )
    assert too_short(walks(steps=least, series=300), TRAIN, SHAPE) == ""
    assert too_short([], TRAIN, SHAPE) == ""


def test_that_all_series_together_are_too_short_is_said_with_what_they_come_to() -> None:
    def trained_on(steps: int) -> int:
        periods = np.zeros(stats.SEASONS, np.int32)
        return prepare(walks(steps, series=3), TRAIN, SHAPE, periods).count(Role.TRAIN)

    enough = next(steps for steps in range(30, 300) if trained_on(steps) >= LEAST_ORIGINS)
    said = too_short(walks(enough - 1, series=3), TRAIN, SHAPE)
    assert said.startswith(
        f"of {3 * (enough - 1)} steps at most {trained_on(enough - 1)} can be trained on, and 200 "
    )
    assert retrain(walks(enough - 1, series=3), TRAIN, SHAPE) is Failure.NO_DATA
    assert too_short(walks(enough, series=3), TRAIN, SHAPE) == ""


def test_an_empty_log_or_one_that_is_left_out_gives_no_data() -> None:
    assert retrain([], TRAIN, SHAPE) is Failure.NO_DATA
    assert retrain(walks(steps=10, series=1), TRAIN, SHAPE) is Failure.NO_DATA
    assert retrain(sines(), TRAIN, SHAPE, spans=[Span("", 0.0, 1e12)]) is Failure.NO_DATA


@pytest.mark.parametrize(
    ("found", "before", "expected"),
    [
        ([168, 24, 0], [24, 12, 0], [24, 168, 0]),
        ([7, 0, 0], [0, 0, 0], [7, 0, 0]),
        ([0, 0, 0], [24, 12, 5], [0, 0, 0]),
        ([1, 2, 3], [3, 1, 2], [3, 1, 2]),
        ([5, 7, 9], [7, 7, 7], [7, 7, 7]),  # what came in broken goes out within bounds
    ],
)
def test_seasons_that_stay_keep_their_places(
    found: list[int], before: list[int], expected: list[int]
) -> None:
    placed = in_place(np.array(found, np.int32), np.array(before, np.int32))
    assert placed.tolist() == expected
    assert placed.dtype == np.int32
