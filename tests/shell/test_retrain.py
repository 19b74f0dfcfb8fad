"""How a retrain begins, what its end is called, and that nothing a trainer does keeps the loop waiting or changes
what serves. Trainers here are small programs that crash, hang, grow or report, run as real processes.
"""

import os
import signal
import subprocess
import sys
import textwrap
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import psutil
import pytest

from forecaster.shell.retrain import Began, Ended, Event, GotOn, Outcome, Retrainer, RetrainSpec

SPEC = RetrainSpec.model_validate({})

READ = "import sys, json, time\njob = json.loads(sys.stdin.readline())\n"
PROMOTES = (
    READ
    + 'print(json.dumps({"stage": "end", "outcome": "promoted", "version": "v2", "losses": {"candidate": 0.5}}))'
)
HANGS = READ + 'print(json.dumps({"stage": "fit", "step": 25}), flush=True)\ntime.sleep(600)'


class Clock:
    """A clock that tests move."""

    def __init__(self) -> None:
        self.now_s = 1000.0

    def __call__(self) -> float:
        return self.now_s


@contextmanager
def retrainer(
    program: str, spec: RetrainSpec = SPEC, now: Callable[[], float] = time.monotonic
) -> Iterator[Retrainer]:
    made = Retrainer(spec, lambda fit_s: b'{"fit_s": %d}' % fit_s, now, (sys.executable, "-c", program))
    try:
        yield made
    finally:
        made.stop()


def poll(made: Retrainer, *, leads: bool = True, serving: bool = True, remains: bool = False) -> list[Event]:
    return made.poll(leads=leads, serving=serving, remains=remains)


def until(made: Retrainer, kind: type[Event], **situation: bool) -> list[Event]:
    """Poll until an event of this kind has come; all events up to then."""
    events: list[Event] = []
    deadline_s = time.monotonic() + 30
    while time.monotonic() < deadline_s:
        events += poll(made, **situation)
        if any(isinstance(event, kind) for event in events):
            return events
        time.sleep(0.01)
    raise AssertionError(f"no {kind.__name__} came, only {events}")


def the_end(made: Retrainer, **situation: bool) -> Ended:
    events = until(made, Ended, **situation)
    return next(event for event in events if isinstance(event, Ended))


def pid_of(made: Retrainer) -> int:
    assert made._running is not None
    return made._running.process.pid


# --- how a trainer ends ---


def test_a_promotion_is_reported_with_its_numbers_to_those_who_asked() -> None:
    with retrainer(PROMOTES) as made:
        made.request("http", "one")
        made.request("signal", "two")
        events = until(made, Ended)
        assert events[0] == Began(("http", "signal"))
        ended = events[-1]
        assert isinstance(ended, Ended)
        assert (ended.outcome, ended.version, ended.losses) == (Outcome.PROMOTED, "v2", {"candidate": 0.5})
        assert (ended.triggers, ended.ids) == (("http", "signal"), ("one", "two"))
        assert not made.running


@pytest.mark.parametrize("outcome", ["rejected", "diverged", "no_data", "out_of_memory"])
def test_a_verdict_keeps_its_name(outcome: str) -> None:
    with retrainer(PROMOTES.replace("promoted", outcome)) as made:
        made.request("cli")
        assert the_end(made).outcome == outcome


@pytest.mark.parametrize(
    ("program", "said"),
    [
        ("raise SystemExit(3)", "exit code 3"),
        ("raise ValueError('lost its mind')", "lost its mind"),
        ("import os; os.kill(os.getpid(), 9)", "SIGKILL"),
        ("print('not a report')", "without a result"),
        ("print('[]')\nprint('{\"outcome\": \"sublime\"}')", "without a result"),
        ("import sys; sys.stdout.buffer.write(b'x' * 5_000_000)", "without a result"),
    ],
)
def test_a_trainer_that_dies_or_babbles_has_crashed(program: str, said: str) -> None:
    with retrainer(program) as made:
        made.request("cli")
        ended = the_end(made)
        assert ended.outcome is Outcome.CRASHED
        assert said in ended.message


def test_a_command_that_does_not_exist_has_crashed() -> None:
    made = Retrainer(SPEC, lambda _: b"{}", command=("/no/such/program",))
    made.request("cli", "one")
    ended = the_end(made)
    assert (ended.outcome, ended.ids) == (Outcome.CRASHED, ("one",))
    made.stop()


def test_a_trainer_that_hangs_is_killed_when_its_time_is_up() -> None:
    clock = Clock()
    with retrainer(HANGS, now=clock) as made:
        made.request("cli")
        until(made, GotOn)
        pid = pid_of(made)
        clock.now_s += SPEC.time_limit_s + 1
        ended = the_end(made)
        assert ended.outcome is Outcome.TIMED_OUT
        assert not psutil.pid_exists(pid)


def test_a_trainer_that_ignores_the_first_signal_gets_the_second() -> None:
    deaf = HANGS.replace("import sys", "import signal, sys", 1).replace(
        "job =", "signal.signal(15, signal.SIG_IGN)\njob =", 1
    )
    clock = Clock()
    with retrainer(deaf, now=clock) as made:
        made.request("cli")
        until(made, GotOn)
        clock.now_s += SPEC.time_limit_s + 1
        poll(made)
        clock.now_s += 2
        assert the_end(made).outcome is Outcome.TIMED_OUT


def test_a_trainer_that_hangs_after_its_result_has_its_result() -> None:
    clock = Clock()
    with retrainer(PROMOTES + "\nsys.stdout.flush()\ntime.sleep(600)", now=clock) as made:
        made.request("cli")
        while not (made._running and made._running.result):
            poll(made)
            time.sleep(0.01)
        clock.now_s += SPEC.time_limit_s + 1
        assert the_end(made).outcome is Outcome.PROMOTED


def test_a_trainer_that_grows_is_killed_from_outside() -> None:
    grows = READ + "hoard = bytearray(400 << 20)\nhoard[::4096] = b'x' * len(hoard[::4096])\ntime.sleep(600)"
    with retrainer(grows, SPEC.model_copy(update={"memory_limit_mb": 256})) as made:
        made.request("cli")
        ended = the_end(made)
        assert ended.outcome is Outcome.OUT_OF_MEMORY
        assert "memory_limit_mb = 256" in ended.message


def test_stop_ends_the_trainer_and_says_so() -> None:
    with retrainer(HANGS) as made:
        made.request("cli", "one")
        until(made, GotOn)
        pid = pid_of(made)
        (ended,) = made.stop()
        assert isinstance(ended, Ended)
        assert (ended.outcome, ended.ids) == (Outcome.CANCELLED, ("one",))
        assert not psutil.pid_exists(pid)
        assert made.stop() == []


def test_a_worker_that_no_longer_leads_cancels_its_trainer_and_starts_none() -> None:
    with retrainer(HANGS) as made:
        made.request("cli")
        until(made, GotOn)
        assert the_end(made, leads=False).outcome is Outcome.CANCELLED
        made.request("cli", "two")
        (dismissed,) = poll(made, leads=False)
        assert isinstance(dismissed, Ended)
        assert (dismissed.outcome, dismissed.ids) == (Outcome.CANCELLED, ("two",))
        assert poll(made, leads=False) == []
        assert not made.running


def test_a_worker_that_reads_back_what_makes_it_lead_goes_on_training_and_begins_nothing_new() -> None:
    with retrainer(HANGS) as made:
        made.request("drift", "one")
        until(made, GotOn)
        trains = pid_of(made)
        made.request("cli", "two")
        assert poll(made, leads=False, remains=True) == []
        assert pid_of(made) == trains
        os.kill(trains, signal.SIGKILL)
        assert the_end(made, leads=False, remains=True).ids == ("one",)
        assert poll(made, leads=False, remains=True) == []
        assert until(made, Began)[-1] == Began(("cli",))


def test_the_trainer_has_one_core_a_group_of_its_own_in_our_session_and_none_of_our_secrets(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("FORECASTER_KAFKA__SASL_PLAIN_PASSWORD", "hush")
    tells = READ + textwrap.dedent("""
        import os
        print(json.dumps({"stage": "end", "outcome": "rejected", "message": json.dumps(
            [os.environ["PJRT_NPROC"], os.environ["OMP_NUM_THREADS"], os.getpgid(0) == os.getpid(), os.getsid(0),
             [name for name in os.environ if name.startswith("FORECASTER_")],
             os.stat(os.environ["JAX_COMPILATION_CACHE_DIR"]).st_mode & 0o777])}))
    """)
    with retrainer(tells) as made:
        made.request("cli")
        assert the_end(made).message == f'["1", "1", true, {os.getsid(0)}, [], {0o700}]'


def test_what_an_operator_tells_the_whole_service_is_not_for_the_trainer() -> None:
    told = "import os, signal\nfor name in ('HUP', 'QUIT', 'USR1', 'USR2'):\n"
    told += "    os.kill(os.getpid(), signal.Signals['SIG' + name])\n"
    ours = signal.pthread_sigmask(signal.SIG_BLOCK, ())
    with retrainer(told + PROMOTES) as made:
        made.request("signal")
        assert the_end(made).outcome is Outcome.PROMOTED
    assert signal.pthread_sigmask(signal.SIG_BLOCK, ()) == ours


def test_what_was_compiled_is_removed_at_the_end() -> None:
    with retrainer(PROMOTES) as made:
        made.request("cli")
        the_end(made)
        cache = made._cache
        assert os.path.isdir(cache)
        made.stop()
        assert not os.path.exists(cache)


def test_what_a_killed_trainer_compiled_is_not_handed_on_since_it_may_be_there_in_half() -> None:
    with retrainer("import os; os.kill(os.getpid(), 9)") as made:
        made.request("cli")
        assert the_end(made).outcome is Outcome.CRASHED
        assert not made._cache


def test_what_a_trainer_compiled_is_handed_on_to_the_next() -> None:
    with retrainer(PROMOTES) as made:
        made.request("cli")
        the_end(made)
        cache = made._cache
        made.request("cli")
        the_end(made)
        assert made._cache == cache


# --- how many ---


def test_a_thousand_requests_lead_to_one_retrain_and_one_more() -> None:
    with retrainer(HANGS) as made:
        for i in range(1000):
            made.request("signal", str(i))
        assert until(made, GotOn).count(Began(("signal",))) == 1
        first = pid_of(made)
        for i in range(1000):
            made.request("signal", str(1000 + i))
            assert not any(isinstance(event, Began) for event in poll(made))
        os.kill(first, signal.SIGKILL)
        events = until(made, Ended) + until(made, GotOn)
        assert sum(isinstance(event, Began) for event in events) == 1
        ids = [len(event.ids) for event in events if isinstance(event, Ended)]
        assert ids == [1000]
        assert made.coalesced == 999 + 999
        (ended,) = made.stop()
        assert isinstance(ended, Ended)
        assert len(ended.ids) == 1000


def test_the_first_fit_is_given_less_time() -> None:
    tells = READ + 'print(json.dumps({"stage": "end", "outcome": "rejected", "message": str(job["fit_s"])}))'
    with retrainer(tells) as made:
        made.request("cli")
        assert the_end(made, serving=False).message == str(int(SPEC.first_fit_s))
        made.request("cli")
        assert the_end(made).message == str(int(SPEC.fit_s))


@pytest.mark.process
@pytest.mark.skipif(sys.platform != "linux", reason="the policy is Linux's")
def test_a_trainer_takes_only_time_that_nobody_else_wants_and_is_the_first_to_go() -> None:
    with subprocess.Popen(
        [sys.executable, "-m", "forecaster.shell.trainer"], stdin=subprocess.PIPE
    ) as process:
        deadline_s = time.monotonic() + 60
        while os.sched_getscheduler(process.pid) != os.SCHED_IDLE and time.monotonic() < deadline_s:
            time.sleep(0.05)
        assert os.sched_getscheduler(process.pid) == os.SCHED_IDLE
        assert Path(f"/proc/{process.pid}/oom_score_adj").read_text() == "1000\n"
        process.kill()


# --- the parent's death ---


@pytest.mark.process
def test_a_trainer_dies_with_its_parent() -> None:
    """The parent starts a real trainer, which waits for its job, and is killed without a word."""
    parent = textwrap.dedent("""
        import subprocess, sys, time
        child = subprocess.Popen([sys.executable, "-m", "forecaster.shell.trainer"], stdin=subprocess.PIPE)
        print(child.pid, flush=True)
        time.sleep(600)
    """)
    with subprocess.Popen([sys.executable, "-c", parent], stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        child = psutil.Process(int(process.stdout.readline()))
        process.kill()
        process.wait()
    child.wait(60)
    assert not child.is_running()
