"""A model that loses is found soon, one that does not is left in peace."""

import numpy as np
import pytest

from forecaster.core.trial import Losses, Trial, TrialSpec, Verdict, observe

SPEC = TrialSpec.model_validate({})
SOONEST = 8  # blocks that a good model loses one after the other once in 256 times


def tried(blocks: list[Losses], spec: TrialSpec = SPEC) -> tuple[int, Verdict | None]:
    """How many blocks it took, and to what verdict."""
    state = Trial()
    for number, block in enumerate(blocks, 1):
        state, verdict = observe(state, block, spec)
        if verdict is not None:
            return number, verdict
    return len(blocks), None


def blocks(ratio: float, noise: float, rng: np.random.Generator, carried: float = 0.0) -> list[Losses]:
    """Blocks of a model that loses `ratio` times as much, each off by some noise, of which the next one has a part; a
    tenth of them are bursts.
    """
    before = np.where(rng.random(100) < 0.1, 50.0, 1.0)
    off = rng.normal(size=100)
    for at in range(1, 100):
        off[at] = carried * off[at - 1] + np.sqrt(1 - carried**2) * off[at]
    model = before * ratio * np.exp(noise * off)
    return [Losses(*pair) for pair in zip(model.tolist(), before.tolist(), strict=True)]


@pytest.mark.parametrize("scale", [1e-9, 1.0, 1e9])
def test_the_unit_of_losses_does_not_matter(scale: float) -> None:
    assert tried([Losses(12 * scale, scale)] * 40) == (SOONEST, Verdict.LOST)
    assert tried([Losses(scale, scale)] * 40) == (32, Verdict.PASSED)


def test_a_loss_within_the_margin_is_none() -> None:
    assert tried([Losses(1.019, 1.0)] * 40) == (32, Verdict.PASSED)
    assert tried([Losses(1.021, 1.0)] * 40) == (SOONEST, Verdict.LOST)
    assert tried([Losses(1.45, 1.0)] * 40, TrialSpec(trial_margin_ratio=0.5)) == (32, Verdict.PASSED)
    assert tried([Losses(1.0, 1.5)] * 40) == (32, Verdict.PASSED)


def test_nothing_to_lose_is_no_loss() -> None:
    assert tried([Losses(0.0, 0.0)] * 40) == (32, Verdict.PASSED)


def test_the_length_is_as_configured() -> None:
    assert tried([Losses(1.0, 1.0)] * 90, TrialSpec(trial_horizons=60)) == (60, Verdict.PASSED)


def test_a_disastrous_start_does_not_hide_that_it_stays_a_little_worse() -> None:
    number, verdict = tried([Losses(90.0, 1.0), Losses(5.0, 1.0)] + [Losses(1.05, 1.0)] * 30)
    assert (number, verdict) == (SOONEST, Verdict.LOST)


@pytest.mark.parametrize("noise", [0.01, 0.1, 1.0])
@pytest.mark.parametrize("carried", [0.0, 0.25])
def test_a_model_as_good_as_the_margin_allows_is_rarely_rolled_back(noise: float, carried: float) -> None:
    rng = np.random.default_rng(5)
    verdicts = [tried(blocks(1.02, noise, rng, carried))[1] for _ in range(1000)]
    assert verdicts.count(Verdict.LOST) <= (15 if carried == 0 else 40)


@pytest.mark.parametrize(("ratio", "noise"), [(1.1, 0.04), (1.5, 0.2), (12.0, 1.0)])
def test_a_bad_one_is_found(ratio: float, noise: float) -> None:
    rng = np.random.default_rng(6)
    found = [tried(blocks(ratio, noise, rng, 0.25)) for _ in range(300)]
    assert sum(verdict is Verdict.LOST for _, verdict in found) >= 285
    assert np.median([number for number, verdict in found if verdict is Verdict.LOST]) <= 10
