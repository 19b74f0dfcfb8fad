"""The training process: reads its slice of the log, fits, judges, publishes what is better, says so and exits.

In comes one line of JSON on stdin (`Job`); out go lines of JSON on stdout (`Report`), the last of which is the result.
Runs apart from the daemon, at low priority, and dies with it: the end of stdin or the parent's death ends it at once.
Nothing serves before the last act, one record on the models topic; so wherever it is stopped, nothing has changed.
"""

import ctypes
import hashlib
import os
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterable, Mapping
from contextlib import suppress
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import jax
import msgspec
import numpy as np
from pydantic import SecretStr

from forecaster.config import Config
from forecaster.core.descent import TrainSpec
from forecaster.core.grid import GridSpec
from forecaster.core.history import Span
from forecaster.core.model import Model, ModelSpec
from forecaster.core.promote import PromoteSpec, Retrained, retrain, too_short
from forecaster.core.spec import Spec
from forecaster.core.tick import TickSpec
from forecaster.core.train import Failure, Progress
from forecaster.errors import ForecasterError
from forecaster.shell.slices import Slicer
from forecaster.shell.stores import Files, OnFiles, OnTopics, Topics

NICE = 10  # where there is nothing better
OOM_FILE = Path("/proc/self/oom_score_adj")  # the process that the kernel ends first is the one with 1000
PR_SET_PDEATHSIG = 1


class Job(msgspec.Struct, frozen=True, kw_only=True):
    """What to train. The dictionaries are the sections of the configuration."""

    source: OnTopics | OnFiles
    tick: dict[str, Any] = {}
    grid: dict[str, Any] = {}
    model: dict[str, Any] = {}
    train: dict[str, Any] = {}
    promote: dict[str, Any] = {}
    spans: list[tuple[str, float, float]] = []
    """Series ("": all), and event times from and to: left out."""
    fit_s: float = 600.0
    """After so long, from its first look at the hold-out on, the fit ends with the best it has."""


class Report(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """A line on stdout. With an `outcome` it is the last one."""

    stage: str
    outcome: str = ""
    reason: str = ""
    message: str = ""
    version: str = ""
    ticks: int = 0
    series: int = 0
    step: int = 0
    steps: int = 0
    losses: dict[str, float] = {}
    origins: dict[str, int] = {}


Say = Callable[[Report], None]


def job_for(config: Config, fit_s: float, spans: Iterable[Span] = ()) -> bytes:
    """The line for a trainer that reads the log and publishes on the models topic, as configured."""
    training, topics = config.training, config.topics
    source = OnTopics(
        kafka=revealed(config.kafka),
        ticks=topics.ticks,
        models=topics.models,
        history_ticks=training.history_ticks,
        read_s=training.time_limit_s / 2,
        keep=training.keep_models,
    )
    return msgspec.json.encode(_job(config, source, fit_s, spans))


def job_on_files(config: Config, ticks: Path, candidate: Path, serving: Path | None = None) -> Job:
    """The job of training on a file of ticks, as configured. The candidate is written if it is better."""
    source = OnFiles(ticks=str(ticks), candidate=str(candidate), serving=str(serving) if serving else "")
    return _job(config, source, config.training.fit_s)


def _job(config: Config, source: OnTopics | OnFiles, fit_s: float, spans: Iterable[Span] = ()) -> Job:
    def part(kind: type[Spec]) -> dict[str, Any]:
        return config.training.model_dump(mode="json", include=set(kind.model_fields))

    return Job(
        source=source,
        tick=config.tick.model_dump(mode="json"),
        grid=config.grid.model_dump(mode="json"),
        model=config.network.model_dump(mode="json"),
        train=part(TrainSpec),
        promote=part(PromoteSpec),
        spans=[(span.series, span.start_s, span.end_s) for span in spans],
        fit_s=fit_s,
    )


def revealed(spec: Spec) -> dict[str, Any]:
    """A spec as JSON with its secrets in clear: for the pipe to the trainer, never for a log."""
    secrets = {name: value.get_secret_value() for name, value in spec if isinstance(value, SecretStr)}
    return spec.model_dump(mode="json") | secrets


def main() -> int:
    """Entry of the process; the exit code."""
    _step_back()
    say = _speaker()
    line = sys.stdin.buffer.readline()
    if not line:
        return 1  # the parent is gone already
    job = msgspec.json.decode(line, type=Job)
    threading.Thread(target=_exit_at_end_of_input, daemon=True).start()
    try:
        say(run(job, say))
    except MemoryError:
        say(Report(stage="end", outcome="out_of_memory", message="memory is exhausted"))
    except jax.errors.JaxRuntimeError as error:
        outcome = "out_of_memory" if "RESOURCE_EXHAUSTED" in str(error) else "crashed"
        say(Report(stage="end", outcome=outcome, message=str(error)[:200]))
    except ForecasterError as error:
        say(Report(stage="end", outcome="crashed", message=str(error)[:500]))
        return error.exit_code
    return 0


def run(job: Job, say: Say) -> Report:
    """Do the job; the last report. Raises ForecasterError when the log or the models cannot be read or written."""
    source = job.source
    store = Topics(source) if isinstance(source, OnTopics) else Files(source)
    slicer = Slicer(TickSpec.model_validate(job.tick), GridSpec.model_validate(job.grid))
    for records in store.read(TickSpec.model_validate(job.tick)):
        slicer.add(records)
    history = slicer.slices()
    say(Report(stage="read", ticks=slicer.ticks, series=len(history)))
    first_look_s: list[float] = []  # when compiling is over

    def watch(at: Progress) -> bool:
        now_s = time.monotonic()
        first_look_s.append(now_s)
        losses = {"train": at.loss, "holdout": at.holdout_loss, "best": at.best_loss}
        say(Report(stage="fit", step=at.step, steps=at.steps, losses=losses))
        return now_s - first_look_s[0] < job.fit_s

    spec = TrainSpec.model_validate(job.train)
    shape = ModelSpec.model_validate(job.model)
    result = retrain(
        history,
        spec,
        shape,
        PromoteSpec.model_validate(job.promote),
        store.serving(),
        [Span(*span) for span in job.spans],
        watch,
    )
    if isinstance(result, Failure):
        short = too_short(history, spec, shape) if result is Failure.NO_DATA else ""
        message = "; ".join(filter(None, (f"{slicer.ticks} ticks of {len(history)} series", short)))
        return Report(stage="end", outcome=result.value, message=message, ticks=slicer.ticks)
    model = _finished(result, slicer.newest_s, store.offsets, spec.seed)
    if result.decision.promote:
        store.publish(model, result.decision.reason.value)
    return Report(
        stage="end",
        outcome="promoted" if result.decision.promote else "rejected",
        reason=result.decision.reason.value,
        version=model.version,
        ticks=slicer.ticks,
        series=len(history),
        step=result.fit.steps_taken,
        losses=_losses(result),
        origins=result.origins,
    )


def _losses(result: Retrained) -> dict[str, float]:
    return {name: loss for name, loss in result.decision.losses._asdict().items() if loss is not None}


def _finished(result: Retrained, newest_s: float, offsets: Mapping[int, tuple[int, int]], seed: int) -> Model:
    """The model with its card. The same slices, spec and seed give the same version again."""
    digest = hashlib.sha256(repr(sorted(offsets.items())).encode())
    for name in sorted(result.model.params):
        digest.update(np.ascontiguousarray(result.model.params[name]).tobytes())
    through = datetime.fromtimestamp(newest_s, UTC)
    card = result.model.card.model_copy(
        update={
            "version": f"{through:%Y%m%d-%H%M%S}-{digest.hexdigest()[:8]}",
            "created_s": newest_s,
            "made_s": time.time(),
            "seed": seed,
            "offsets": {str(partition): span for partition, span in offsets.items()},
            "scores": {name: {"loss": loss} for name, loss in _losses(result).items()},
            "notes": {"reason": result.decision.reason.value},
        }
    )
    return result.model._replace(card=card)


# --- the process --------------------------------------------------------------------------------------


def _step_back() -> None:
    """Low priority, the first to go when memory runs out, and an end when the parent ends, however it does (elsewhere
    than on Linux: at the end of stdin).
    """
    os.nice(NICE)
    with suppress(OSError):  # elsewhere than on Linux there is no such file
        OOM_FILE.write_text("1000")
    if sys.platform == "linux":
        # A task that wakes up never waits for an idle one, as it does for a nice one.
        os.sched_setscheduler(0, os.SCHED_IDLE, os.sched_param(0))
        ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)


def _exit_at_end_of_input() -> None:
    while os.read(0, 4096):  # not sys.stdin: its lock, held here, would abort a normal exit
        pass
    os._exit(1)


def _speaker() -> Say:
    """Write reports to what is stdout now; anything else that prints goes to stderr from here on."""
    out = os.fdopen(os.dup(1), "wb", buffering=0)
    os.dup2(2, 1)
    encode = msgspec.json.Encoder().encode

    def say(report: Report) -> None:
        out.write(encode(report) + b"\n")

    return say


if __name__ == "__main__":
    sys.exit(main())
