"""Scores against the same worked out by hand, one forecast at a time, from the whole series."""

from collections.abc import Sequence

import numpy as np
import pytest

from forecaster.shell import scoring
from forecaster.shell.scoring import Scorer

LEVELS = (0.05, 0.1, 0.2, 0.5, 0.8, 0.9, 0.95)
JUDGED = LEVELS[1:-1]
H, WARM = 3, 40
RNG_SEED = 5


def series(seed: int, steps: int = 140) -> np.ndarray:
    return np.round(100 + np.cumsum(np.random.default_rng(seed).normal(size=steps)), 1)  # rounded: ties occur


def forecasts(values: np.ndarray, seed: int) -> np.ndarray:
    """Quantiles minus the value, (step, horizon, level)."""
    rng = np.random.default_rng(seed)
    offset = np.sort(rng.normal(size=(len(values), H, len(LEVELS))), axis=2)
    return np.round(offset, 1).astype(np.float32)


def play(runs: dict[str, tuple[np.ndarray, np.ndarray]], batch: int) -> Scorer:
    """The warm-up ends with the step before the first origin's, as the benchmark cuts it."""
    scorer = Scorer(LEVELS, H)
    steps = [(t, name) for name, (values, _) in runs.items() for t in range(len(values))]
    steps.sort()
    for warm in (True, False):
        part = [(t, name) for t, name in steps if (t < WARM - 1) == warm]
        for start in range(0, len(part), batch):
            some = part[start : start + batch]
            names = [name for _, name in some]
            values = np.array([runs[name][0][t] for t, name in some])
            if warm:
                scorer.warm(names, values)
            else:
                scorer.add(start + len(some), names, values, np.stack([runs[name][1][t] for t, name in some]))
    return scorer


def by_hand(values: np.ndarray, offset: np.ndarray) -> dict[str, float]:
    """Every forecast on its own."""
    change = np.diff(values[:WARM])
    scale, rms = np.abs(change).mean(), np.sqrt((change**2).mean())
    q = np.array(JUDGED)
    loss, last_loss, error, last_error, square = [], [], [], [], []
    inside: list[bool] = []
    half: list[float] = []
    mean_of = scoring.mean_weights(LEVELS)
    for origin in range(WARM - 1, len(values) - H):
        renewed = origin - (origin - (WARM - 1)) % scoring.RENEWED_EVERY
        for h in range(1, H + 1):
            y = values[origin + h]
            quantiles = values[origin] + offset[origin, h - 1].astype(float)
            judged = quantiles[1:-1]
            loss.append(
                2 * np.mean([max(p * (y - x), (p - 1) * (y - x)) for p, x in zip(q, judged, strict=True)])
            )
            known = [abs(values[t + h] - values[t]) for t in range(renewed - h + 1)][-scoring.WINDOW :]
            spread = values[origin] + np.quantile([*known, *(-x for x in known)], q)
            last_loss.append(2 * np.maximum(q * (y - spread), (q - 1) * (y - spread)).mean())
            error.append(abs(y - quantiles[3]))
            last_error.append(abs(y - values[origin]))
            square.append((y - quantiles @ mean_of) ** 2)
            low, high = judged[0], judged[-1]
            inside.append(low <= y <= high)
            half.append(0.5 * (low <= y <= high) + 0.5 * (low < y < high))
    return {
        "sql": np.mean(loss) / scale,
        "last_sql": np.mean(last_loss) / scale,
        "mase": np.mean(error) / scale,
        "last_mase": np.mean(last_error) / scale,
        "rmsse": np.sqrt(np.mean(square)) / rms,
        "coverage_80": float(np.mean(inside)),
        "coverage_80_ties_half": float(np.mean(half)),
    }


@pytest.mark.parametrize("batch", [1, 7, 1000])
def test_scores_are_those_of_every_forecast_on_its_own(batch: int) -> None:
    # With a batch of 1 each origin is settled by itself, so the last value's quantiles are renewed at each.
    runs = {name: (series(i), forecasts(series(i), 10 + i)) for i, name in enumerate("ab")}
    scorer = play(runs, batch)
    for name, (values, offset) in runs.items():
        got = scorer.by_series()[name]._asdict()
        assert got["forecasts"] == len(values) - H - (WARM - 1)
        for key, expected in by_hand(values, offset).items():
            exact = key != "last_sql" or batch == 1000
            assert got[key] == pytest.approx(expected, rel=1e-6 if exact else 0.05), key


def test_series_count_alike_however_long_they_are() -> None:
    runs = {
        "long": (series(0), forecasts(series(0), 3)),
        "short": (series(1, 60), forecasts(series(1, 60), 4)),
    }
    scorer = play(runs, 16)
    each = scorer.by_series()
    assert scorer.overall().sql == pytest.approx(np.mean([each["long"].sql, each["short"].sql]))
    steps = scorer.by_horizon()
    assert np.mean([step.mase for step in steps]) == pytest.approx(scorer.overall().mase)
    assert scorer.overall().forecasts == scorer.forecasts == each["long"].forecasts + each["short"].forecasts
    assert scorer.overall().skill == pytest.approx(1 - scorer.overall().sql / scorer.overall().last_sql)


def test_moments_add_up_to_the_whole() -> None:
    runs = {"a": (series(0), forecasts(series(0), 3))}
    scorer = play(runs, 16)
    judged = sum(moment.forecasts for moment in scorer.moments)
    assert judged == scorer.forecasts
    assert sum(m.inside[0] for m in scorer.moments) / judged == pytest.approx(scorer.overall().coverage_80)
    assert sum(m.loss for m in scorer.moments) / judged == pytest.approx(scorer.overall().sql)
    assert sum(m.last_loss for m in scorer.moments) / judged == pytest.approx(scorer.overall().last_sql)


def test_true_quantiles_cover_what_they_promise() -> None:
    rng = np.random.default_rng(RNG_SEED)
    values = np.cumsum(rng.normal(size=6000))
    normal = {0.05: -1.645, 0.1: -1.282, 0.2: -0.842, 0.5: 0.0, 0.8: 0.842, 0.9: 1.282, 0.95: 1.645}
    h = np.sqrt(np.arange(1, H + 1))
    offset = np.broadcast_to(h[:, None] * np.array([normal[q] for q in LEVELS]), (6000, H, len(LEVELS)))
    scorer = play({"walk": (values, offset.astype(np.float32))}, 512)
    np.testing.assert_allclose(scorer.below()[0], LEVELS, atol=0.02)
    assert scorer.overall().coverage_80 == pytest.approx(0.8, abs=0.02)
    assert scorer.overall().coverage_60 == pytest.approx(0.6, abs=0.02)
    assert scorer.overall().relative_sql == pytest.approx(1.0, abs=0.02)  # nobody beats the last value here


def test_true_quantiles_of_values_that_repeat_are_on_the_diagonal() -> None:
    """Two thirds are zero, and so are the quantiles up to there; the rest is exponential."""
    rng = np.random.default_rng(RNG_SEED)
    values = np.where(rng.random(6000) < 2 / 3, 0.0, rng.exponential(size=6000))
    q = np.array(LEVELS)
    true = np.where(q < 2 / 3, 0.0, -np.log(np.minimum(3 * (1 - q), 1)))
    offset = np.broadcast_to(true - values[:, None, None], (6000, H, len(LEVELS)))
    scorer = play({"rain": (values, offset)}, 512)
    np.testing.assert_allclose(scorer.fell().sum(1), 1.0)
    np.testing.assert_allclose(scorer.below()[0], LEVELS, atol=0.1)
    np.testing.assert_allclose(scorer.below()[0][q > 2 / 3], q[q > 2 / 3], atol=0.02)


def test_what_cannot_be_judged_is_left_out() -> None:
    scorer = Scorer((0.25, 0.5, 0.75), 2)
    still, offset = np.ones(9), np.zeros((5, 2, 3), np.float32)
    scorer.warm(["still"] * 4, still[:4])
    scorer.add(5, ["still"] * 5, still[4:], offset)
    assert scorer.by_series() == {}  # it never moved: there is no unit
    assert scorer.overall().forecasts == 0
    moving: Sequence[float] = [1.0, 2.0, 1.0, 2.0, 1.0, 2.0, 1.0, 2.0, 1.0]
    scorer.warm(["moves"] * 4, np.array(moving[:4]))
    scorer.add(5, ["moves"] * 5, np.array(moving[4:]), offset)
    assert scorer.by_series()["moves"].mase == pytest.approx(0.5)  # one step ahead 1, two steps ahead 0
    assert np.isnan(scorer.by_series()["moves"].coverage_80)  # there is no such interval
