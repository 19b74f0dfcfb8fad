"""The one trainer that runs: started, watched and ended without ever keeping the loop waiting.

In come requests and the time; out go events: a trainer began, got on, ended, and how. Requests coalesce: one trainer
runs, at most one retrain waits. What is trained on is trainer.py's, when is schedule.py's; what serves afterwards is
said on the models topic by the trainer itself, so that one which crashes, hangs, eats memory or diverges changes
nothing.
"""

import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Generator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from enum import StrEnum
from typing import IO, Any

import msgspec
import psutil
import structlog
from pydantic import Field

from forecaster.core.drift import DriftSpec
from forecaster.core.trial import TrialSpec
from forecaster.shell import crash

_log = structlog.get_logger(__name__)

WATCH_S = 0.5  # from one look at the trainer's memory to the next
TERM_S = 1.0  # after SIGTERM, before SIGKILL
MOST_OUTPUT = 1 << 20  # bytes of a line of the trainer's, and
MOST_ERRORS = 4096  # of the end of what it wrote to stderr
MB = 1 << 20
FOR_THE_DAEMON = (signal.SIGHUP, signal.SIGQUIT, signal.SIGUSR1, signal.SIGUSR2)
"""What `systemctl kill` sends to all processes of a service alike, and would end a trainer."""
TRAINER = (sys.executable, "-m", "forecaster.shell.trainer")

ENVIRONMENT = {
    # One core, whatever the machine has: serving needs the others. Level 1 compiles in half the time, runs as fast; so
    # do XLA's older loops, for what is dominated by products as training is (the fold runs slower with them).
    "PJRT_NPROC": "1",
    "OMP_NUM_THREADS": "1",
    "OPENBLAS_NUM_THREADS": "1",
    "XLA_FLAGS": "--xla_cpu_multi_thread_eigen=false --xla_backend_optimization_level=1"
    " --xla_cpu_use_fusion_emitters=false",
    "JAX_PLATFORMS": "cpu",
    "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0.2",
    "JAX_PERSISTENT_CACHE_MIN_ENTRY_SIZE_BYTES": "-1",
}


class Trigger(StrEnum):
    """What asked for a retrain; also the metric label."""

    SCHEDULE = "schedule"
    SIGNAL = "signal"
    HTTP = "http"
    CLI = "cli"
    DRIFT = "drift"
    STARTUP = "startup"


class Outcome(StrEnum):
    """What came of a retrain; also the metric label and the word on the control topic."""

    PROMOTED = "promoted"
    REJECTED = "rejected"
    DIVERGED = "diverged"
    NO_DATA = "no_data"
    TIMED_OUT = "timed_out"
    OUT_OF_MEMORY = "out_of_memory"
    CRASHED = "crashed"
    CANCELLED = "cancelled"


class RetrainSpec(DriftSpec, TrialSpec):
    """When to retrain, what a trainer may use, and how what it made is tried."""

    on_start: bool = Field(True, description="Train as soon as there is history while no model serves.")
    every_ticks: int = Field(
        100_000, ge=0, description="Ticks taken in between scheduled retrains; 0: never."
    )
    every_ratio: float = Field(
        0.15, ge=0, description="Share by which the ticks taken in grow between scheduled retrains; 0: never."
    )
    every_s: float = Field(0.0, ge=0, description="Event time between scheduled retrains; 0: never.")
    cooldown_s: float = Field(
        60.0, ge=0, description="Least time from the end of a retrain to the next scheduled one."
    )
    history_ticks: int = Field(500_000, ge=1000, description="Newest ticks of the log that a retrain reads.")
    time_limit_s: float = Field(600.0, gt=0, description="After so long a trainer is killed.")
    fit_s: float = Field(300.0, gt=0, description="After so long a fit ends with the best it has.")
    first_fit_s: float = Field(
        15.0, gt=0, description="The same while no model serves: something good, soon."
    )
    memory_limit_mb: int = Field(4096, ge=256, description="Resident memory at which a trainer is killed.")
    keep_models: int = Field(10, ge=2, description="Newest models kept on the models topic.")

    def ticks_between(self, ticks: int) -> float:
        """After how many more ticks a retrain is due, when the last one began with so many; infinity: never."""
        by_growth = self.every_ratio * ticks
        return min([float(n) for n in (self.every_ticks, by_growth) if n > 0], default=float("inf"))


@dataclass(frozen=True)
class Began:
    """A trainer was started."""

    triggers: tuple[str, ...]


@dataclass(frozen=True)
class GotOn:
    """A trainer said where it stands: the fields of its report."""

    report: dict[str, Any]


@dataclass(frozen=True)
class Ended:
    """A trainer has ended, for these requests (ids of the control topic)."""

    outcome: Outcome
    triggers: tuple[str, ...]
    ids: tuple[str, ...]
    duration_s: float
    reason: str = ""
    message: str = ""
    version: str = ""
    losses: dict[str, float] = field(default_factory=dict[str, float])


Event = Began | GotOn | Ended


class Retrainer:
    """At most one trainer, and at most one retrain that waits for it to end.

    `make_job(fit_s)` gives the line that a trainer reads from stdin.
    """

    def __init__(
        self,
        spec: RetrainSpec,
        make_job: Callable[[float], bytes],
        now: Callable[[], float] = time.monotonic,
        command: Sequence[str] = TRAINER,
    ) -> None:
        self.spec = spec
        self.coalesced = 0
        """Requests that were answered by a retrain that was already due."""
        self._make_job, self._now, self._command = make_job, now, tuple(command)
        self._wanted: dict[str, None] = {}
        self._ids: list[str] = []
        self._running: _Running | None = None
        self._cache = ""

    @property
    def running(self) -> bool:
        """Whether a trainer runs."""
        return self._running is not None

    @property
    def memory_bytes(self) -> int:
        """Resident memory of the trainer at the last look; 0 without one."""
        return self._running.process.memory_bytes if self._running else 0

    def request(self, trigger: str, request_id: str = "") -> None:
        """Ask for a retrain. A thousand requests before the next one begins lead to that one."""
        if self._wanted:
            self.coalesced += 1
        self._wanted[trigger] = None
        if request_id:
            self._ids.append(request_id)

    def poll(self, *, leads: bool, serving: bool, remains: bool = False) -> list[Event]:
        """What has happened; starts what was asked for. Never waits.

        `leads`: this worker trains for the fleet; `remains`: nobody else does, though it may begin nothing just now.
        """
        events: list[Event] = []
        gone = not (leads or remains)
        if self._running:
            events += self._watch(self._running, cancel=gone)
        if gone and self._wanted:
            events.append(self._dismiss())
        if leads and self._wanted and not self._running:
            events += self._begin(self.spec.fit_s if serving else self.spec.first_fit_s)
        return events

    def stop(self, timeout_s: float = 2.0) -> list[Event]:
        """End the trainer in stages and wait for it; what was running or waiting is cancelled."""
        events: list[Event] = []
        if self._running:
            running, self._running = self._running, None
            running.process.end(timeout_s)
            events.append(running.ended(Outcome.CANCELLED, self._now(), "the worker stops"))
        self._forget_compiled()
        return events

    # ------------------------------------------------------------------ one trainer

    def _begin(self, fit_s: float) -> list[Event]:
        triggers, ids = tuple(self._wanted), tuple(self._ids)
        self._wanted, self._ids = {}, []
        job = self._make_job(fit_s)
        try:
            process = TrainerProcess(self._command, job, self._keep_compiled(), self._now)
        except OSError as error:  # no memory or no process to be had just now
            return [Ended(Outcome.CRASHED, triggers, ids, 0.0, message=f"could not be started: {error}")]
        self._running = _Running(process, triggers, ids, self._now())
        _log.info("retrain_began", triggers=triggers, pid=process.pid)
        return [Began(triggers)]

    def _keep_compiled(self) -> dict[str, str]:
        """Variables that let a trainer find what the one before has compiled; none on a disk that takes nothing."""
        with suppress(OSError):
            self._cache = self._cache or tempfile.mkdtemp(prefix="forecaster-")  # 0700: it is code
        return {"JAX_COMPILATION_CACHE_DIR": self._cache} if self._cache else {}

    def _forget_compiled(self) -> None:
        if self._cache:
            shutil.rmtree(self._cache, ignore_errors=True)
            self._cache = ""

    def _dismiss(self) -> Ended:
        """What waits will not be done here."""
        triggers, ids = tuple(self._wanted), tuple(self._ids)
        self._wanted, self._ids = {}, []
        return Ended(Outcome.CANCELLED, triggers, ids, 0.0, message="another worker trains now")

    def _watch(self, running: "_Running", *, cancel: bool) -> list[Event]:
        process, now_s = running.process, self._now()
        reports = process.poll()
        events: list[Event] = [GotOn(report) for report in reports if not report.get("outcome")]
        running.result = next((report for report in reports if report.get("outcome")), running.result)
        if process.exit_code is not None:
            self._running = None
            if process.exit_code < 0:
                self._forget_compiled()  # killed, maybe as it wrote, and JAX never mends half a program
            return [*events, running.ended_by_itself(now_s)]
        if running.killed_for is None and running.result is None:
            running.killed_for = self._reason_to_kill(running, now_s, cancel=cancel)
        if running.killed_for is not None or running.overdue(now_s, self.spec.time_limit_s):
            process.push(now_s)
        return events

    def _reason_to_kill(
        self, running: "_Running", now_s: float, *, cancel: bool
    ) -> tuple[Outcome, str] | None:
        limit_s, limit_mb = self.spec.time_limit_s, self.spec.memory_limit_mb
        if cancel:
            return Outcome.CANCELLED, "another worker trains now"
        if running.overdue(now_s, limit_s):
            return Outcome.TIMED_OUT, f"killed after time_limit_s = {limit_s:g}"
        if running.process.memory_bytes > limit_mb * MB:
            used = running.process.memory_bytes // MB
            return Outcome.OUT_OF_MEMORY, f"killed at {used} MB, memory_limit_mb = {limit_mb}"
        return None


class _Running:
    """A trainer, and for whom it runs."""

    def __init__(
        self, process: "TrainerProcess", triggers: tuple[str, ...], ids: tuple[str, ...], began_s: float
    ) -> None:
        self.process, self.triggers, self.ids, self.began_s = process, triggers, ids, began_s
        self.result: dict[str, Any] | None = None
        self.killed_for: tuple[Outcome, str] | None = None

    def overdue(self, now_s: float, limit_s: float) -> bool:
        """Whether its time is up."""
        return now_s - self.began_s > limit_s

    def ended(self, outcome: Outcome, now_s: float, message: str = "", **more: Any) -> Ended:
        """The event."""
        duration_s = now_s - self.began_s
        ended = Ended(outcome, self.triggers, self.ids, duration_s, message=message, **more)
        _log.info(
            "retrain_ended", outcome=outcome.value, seconds=round(duration_s, 1), message=message, **more
        )
        return ended

    def ended_by_itself(self, now_s: float) -> Ended:
        """What a process that is no more has come to."""
        if self.result is not None and self.result["outcome"] in set(Outcome):
            report = self.result
            more = {name: report[name] for name in ("reason", "version", "losses") if name in report}
            return self.ended(Outcome(report["outcome"]), now_s, report.get("message", ""), **more)
        if self.killed_for is not None:
            return self.ended(self.killed_for[0], now_s, self.killed_for[1])
        code = self.process.exit_code or 0
        how = f"killed by {signal.Signals(-code).name}" if code < 0 else f"exit code {code} without a result"
        return self.ended(Outcome.CRASHED, now_s, f"{how}: {self.process.errors[-500:]}".rstrip(": "))


class TrainerProcess:
    """A child process that reads one line and writes lines; every call returns at once, but for `end`."""

    def __init__(
        self, command: Sequence[str], job: bytes, environment: dict[str, str], now: Callable[[], float]
    ) -> None:
        self.exit_code: int | None = None
        self.memory_bytes = 0
        self.errors = ""
        """The end of what it wrote to stderr."""
        kept = {
            name: value
            for name, value in os.environ.items()
            if not name.startswith("FORECASTER_") or name == crash.VARIABLE
        }
        with _blocked(*FOR_THE_DAEMON):  # a child keeps the mask that it was born with
            self._process = subprocess.Popen(
                command,
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=subprocess.PIPE,
                env=kept | ENVIRONMENT | environment,
                # Ctrl-C is for the daemon, which ends its trainer itself. In a session of its own the trainer would be
                # an equal of the daemon, whatever its priority: Linux divides the time by sessions first (autogroup).
                process_group=0,
            )
        self.pid = self._process.pid
        self._now = now
        self._unsent = job.rstrip(b"\n") + b"\n"
        self._line = b""
        self._looked_s = float("-inf")
        self._pushed_s: float | None = None
        for pipe in self._pipes():
            os.set_blocking(pipe.fileno(), False)

    def poll(self) -> list[dict[str, Any]]:
        """Reports that have come; also looks after the pipes, the memory and the end."""
        exit_code = self._process.poll()  # before the pipes are read: what it wrote last is not lost
        self._feed()
        self.errors = (self.errors + self._read(self._process.stderr).decode(errors="replace"))[-MOST_ERRORS:]
        *lines, self._line = (self._line + self._read(self._process.stdout))[-MOST_OUTPUT:].split(b"\n")
        if exit_code is not None:
            self._close(exit_code)
        elif self._now() - self._looked_s >= WATCH_S:
            self._looked_s = self._now()
            with suppress(psutil.Error):
                self.memory_bytes = psutil.Process(self.pid).memory_info().rss
        return [report for line in lines if (report := _report(line)) is not None]

    def push(self, now_s: float) -> None:
        """Ask it to end, and a moment later make it."""
        if self._pushed_s is None:
            self._pushed_s = now_s
            self._process.terminate()
        elif now_s - self._pushed_s >= TERM_S:
            self._process.kill()

    def end(self, timeout_s: float) -> None:
        """Make it end and wait until it has."""
        self._process.terminate()
        try:
            code = self._process.wait(min(timeout_s, TERM_S))
        except subprocess.TimeoutExpired:
            self._process.kill()
            code = self._process.wait()
        self._close(code)

    def _close(self, exit_code: int) -> None:
        self.exit_code, self.memory_bytes = exit_code, 0
        for pipe in self._pipes():
            with suppress(OSError):
                pipe.close()

    def _pipes(self) -> list[IO[bytes]]:
        return [pipe for pipe in (self._process.stdin, self._process.stdout, self._process.stderr) if pipe]

    def _feed(self) -> None:
        if self._unsent and self._process.stdin:
            with suppress(BlockingIOError, BrokenPipeError):
                sent = os.write(self._process.stdin.fileno(), self._unsent)
                self._unsent = self._unsent[sent:]

    def _read(self, pipe: IO[bytes] | None) -> bytes:
        parts: list[bytes] = []
        while pipe and sum(map(len, parts)) < MOST_OUTPUT:
            try:
                part = os.read(pipe.fileno(), 65_536)
            except BlockingIOError:
                break
            if not part:
                break
            parts.append(part)
        return b"".join(parts)


def _report(line: bytes) -> dict[str, Any] | None:
    """A line of the trainer's as a dictionary; None for what is no report."""
    try:
        report = msgspec.json.decode(line)
    except (msgspec.DecodeError, RecursionError):
        return None
    return report if isinstance(report, dict) else None


@contextmanager
def _blocked(*signals: signal.Signals) -> Generator[None]:
    """Signals that this thread, and what it starts meanwhile, lets wait."""
    before = signal.pthread_sigmask(signal.SIG_BLOCK, signals)
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)
