"""`python -m benchmarks.ablations FILE...`: what each choice is worth, by switching it off, one at a time.

Judged where choices are made: on the first 60 % of each series, trained on three quarters of that and, as it goes, on
more, scored on the rest. What does not touch training is judged with the very networks of the row "as it is". Other
differences below one or two per cent are those of two seeds: `--seeds` says how large they are.
"""

import argparse
import sys
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from functools import partial
from math import exp, log
from pathlib import Path
from statistics import mean
from types import ModuleType
from typing import Any, NamedTuple
from unittest.mock import patch

import jax
import jax.numpy as jnp
import numpy as np
from rich.console import Console

from forecaster.config import Config
from forecaster.core import calibrate, experts, features, promote, stats
from forecaster.core.model import Model
from forecaster.shell.backtest import Part, Verdict, backtest
from forecaster.shell.kafka import Record
from forecaster.shell.replay import dataset, read_ticks
from forecaster.shell.scoring import Score, Scorer

FIRST, WARM_UP = 0.6, 0.75
Swaps = dict[int, Model]


class Ablation(NamedTuple):
    """One choice, switched off."""

    what: str
    model: Mapping[str, object] = {}  # keys of the configuration
    training: Mapping[str, object] = {}
    patches: Sequence[tuple[ModuleType, str, object]] = ()
    models: Callable[[Swaps], Swaps] | None = (
        None  # which networks of "as it is" serve; None: it trains its own
    )


def kept(swaps: Swaps) -> Swaps:
    """The very networks."""
    return swaps


def _first(swaps: Swaps) -> Swaps:
    return dict(list(swaps.items())[:1])


def _none(_: Swaps) -> Swaps:
    return {}


def _trusted(swaps: Swaps, share: float) -> Swaps:
    return {
        at: model._replace(card=model.card.model_copy(update={"first_share": share}))
        for at, model in swaps.items()
    }


def _never(_: object, speaks: jax.Array) -> jax.Array:
    return jnp.zeros_like(speaks)


def _no_overtones(circles: Any) -> jax.Array:
    return jnp.zeros((circles[0][0].shape[0], 4 * len(features.HARMONICS)))


def _without(what: str, *patches: tuple[ModuleType, str, object]) -> Ablation:
    return Ablation(what, patches=patches, models=kept)


ABLATIONS = (
    Ablation("no network", models=_none),
    Ablation("the first network for good", models=_first),
    Ablation("plain RNN", model={"cell": "rnn"}),
    Ablation("LSTM", model={"cell": "lstm"}),
    Ablation("no dropout", model={"dropout": 0.0}),
    Ablation("no noise", training={"noise": 0.0}),
    Ablation("weights are not averaged", training={"average": 0.0}),
    Ablation("no warm start", training={"warm_start": False}),
    Ablation(
        "no seasons", patches=((promote, "find_periods", lambda *_: np.zeros(stats.SEASONS, np.int32)),)
    ),
    Ablation("no harmonics", patches=((features, "overtones", _no_overtones),)),
    Ablation(
        "no linear expert",
        patches=((experts, "predict", lambda linear, _: jnp.zeros_like(linear.weights[:, 0])),),
    ),
    Ablation(
        "the network alone, corrected",
        patches=tuple((experts, name, 0.0) for name in ("FEW", "RATE_LIMIT", "ALARM_RATE")),
        models=partial(_trusted, share=1.0),
    ),
    Ablation("every network begins with the same share", models=partial(_trusted, share=0.9)),
    _without("weights stay as they begin", (experts, "RATE_LIMIT", 0.0)),
    _without("each step ahead is weighed by itself", (experts, "BORROW", 0.0)),
    _without("the network inherits regrets and corrections", (experts, "first_words", _never)),
    _without("no corrections", (calibrate, "RATE", 0.0)),
    _without("each step ahead is corrected by itself", (calibrate, "BORROW", 0.0)),
)


def run(records: Sequence[Record], config: Config, swaps: Swaps | None) -> tuple[Score, Swaps]:
    """Backtest and score; also the networks that served."""
    scorer, served = Scorer(config.model.levels, config.model.horizon), Swaps()
    for event in backtest(records, config, WARM_UP, swaps=swaps):
        match event:
            case Verdict(model=Model() as model):
                served[event.offset] = model
            case Part(warm=True):
                scorer.warm(event.issued.series, event.issued.last)
            case Part():
                scorer.add(event.done, event.issued.series, event.issued.last, event.issued.offset)
            case _:
                pass
    return scorer.overall(), served


def ablated(ablation: Ablation, records: Sequence[Record], config: Config, swaps: Swaps) -> Score:
    """The score with a choice switched off."""
    sections = {"model": ablation.model, "training": ablation.training}
    changed = {
        name: getattr(config, name).model_copy(update=dict(keys)) for name, keys in sections.items() if keys
    }
    with ExitStack() as stack:
        for module, name, value in ablation.patches:
            stack.enter_context(patch.object(module, name, value))
        jax.clear_caches()  # what was traced before does not know
        models = ablation.models(swaps) if ablation.models else None
        score, _ = run(records, config.model_copy(update=changed), models)
    jax.clear_caches()
    return score


def study(path: Path, seeds: int) -> Iterator[tuple[str, Score]]:
    """Each row's scores of one file, a seed after the other."""
    config = Config()
    records = list(_newest_left_out(read_ticks(path, config.tick)))
    for seed in range(seeds):
        training = config.training.model_copy(update={"seed": seed})
        seeded = config.model_copy(update={"training": training})
        score, swaps = run(records, seeded, None)
        yield "as it is", score
        for ablation in ABLATIONS:
            yield ablation.what, ablated(ablation, records, seeded, swaps)


def _newest_left_out(records: Sequence[Record]) -> Iterator[Record]:
    lengths = Counter(record.key for record in records)
    seen = Counter[bytes | None]()
    for record in records:
        seen[record.key] += 1
        if seen[record.key] <= int(FIRST * lengths[record.key]):
            yield record


def table(found: Mapping[str, Mapping[str, Sequence[Score]]]) -> str:
    """Relative loss, and in brackets the coverage of the 80 % interval; means of the seeds."""
    names = list(next(iter(found.values())))
    rows = [("", *names, "geometric mean"), ("---", *["---:"] * (len(names) + 1))]
    for what, by_name in found.items():
        losses = [mean(score.relative_sql for score in by_name[name]) for name in names]
        inside = [mean(score.coverage_80 for score in by_name[name]) for name in names]
        cells = [f"{loss:.4f} ({share:.3f})" for loss, share in zip(losses, inside, strict=True)]
        rows.append((what, *cells, f"{exp(mean(map(log, losses))):.4f}"))
    return "\n".join(f"| {' | '.join(row)} |" for row in rows)


def main() -> int:
    """Run all, and print a table; the exit code."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.ablations", description=(__doc__ or "").split("\n")[0]
    )
    parser.add_argument(
        "files", nargs="+", type=Path, metavar="FILE", help="CSV or Parquet: series, ts, value"
    )
    parser.add_argument("--seeds", type=int, default=1, help="runs of each")
    arguments = parser.parse_args()
    console = Console(stderr=True)
    found: dict[str, dict[str, list[Score]]] = defaultdict(lambda: defaultdict(list))
    for path in arguments.files:
        for what, score in study(path, arguments.seeds):
            found[what][dataset(path)].append(score)
            console.print(f"{dataset(path)}: {what}: {score.relative_sql:.4f}, {score.coverage_80:.3f}")
    print(table(found))
    for name, scores in found["as it is"].items():
        losses = [score.relative_sql for score in scores]
        print(f"\n{name}, seeds: {', '.join(f'{loss:.4f}' for loss in losses)}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
