"""Prometheus itself scrapes a worker: every panel's query answers with data, every alert's does when its
comparisons filter nothing. First a worker's metrics alone, all in motion; then the whole demo, from its first stage to
Ctrl-C.
"""

import json
import math
import os
import re
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import numpy as np
import psutil
import pytest
import yaml

from forecaster.core.tick import Outcome, Reason
from forecaster.demo.simulate import SENSORS
from forecaster.shell.http import Hooks, HttpServer, HttpSpec
from forecaster.shell.metrics import Metrics, MetricsSpec, Phase, Stage, State
from tests.prometheus import Prometheus, scraping

DEPLOY = Path(__file__).parent.parent / "deploy"
LEVELS = (0.05, 0.1, 0.5, 0.9, 0.95)
HORIZON = 3
LISTED = SENSORS[0].series
DEMO_S = 300.0
STAGES = ("broker", "history", "first forecast", "ready", "first trained network")

pytestmark = [pytest.mark.slow, pytest.mark.process]


def panel_queries() -> dict[str, str]:
    """The queries of all panels, with the variables filled in as Grafana would."""
    variables = {"$__rate_interval": "1m", "$job": "forecaster", "$instance": ".+", "$series": "a"}
    queries: dict[str, str] = {}
    for path in sorted((DEPLOY / "grafana" / "dashboards").glob("*.json")):
        for panel in json.loads(path.read_text())["panels"]:
            for target in panel.get("targets", ()):
                query = target["expr"]
                for name, value in variables.items():
                    query = query.replace(name, value)
                queries[f"{path.stem}: {panel['title']}: {target['legendFormat']}"] = query
    return queries


def alert_queries() -> dict[str, str]:
    """The expressions of all alerts, each comparison made to answer 0 or 1 instead of filtering."""
    groups = yaml.safe_load((DEPLOY / "prometheus" / "alerts.yml").read_text())["groups"]
    return {rule["alert"]: unfiltered(rule["expr"]) for group in groups for rule in group["rules"]}


def unfiltered(expression: str) -> str:
    """absent() has data only when something is wrong: what it asks for is asked instead."""
    return re.sub(r" (==|!=|>=|<=|>|<) ", r" \1 bool ", expression).replace("absent(", "(")


def await_data(
    prometheus: Prometheus, queries: dict[str, str], good: Callable[[float], bool], timeout_s: float = 60.0
) -> None:
    """Ask until each query has answered with a good value."""
    deadline = time.monotonic() + timeout_s
    silent = queries
    while silent and time.monotonic() < deadline:
        silent = {
            name: query for name, query in silent.items() if not any(map(good, prometheus.query(query)))
        }
        time.sleep(0.2)
    assert not silent


@contextmanager
def every_metric_moves() -> Iterator[int]:
    """A worker's metrics, all in motion, behind the real HTTP server; yields its port."""
    metrics = Metrics(MetricsSpec(series=("a",)), horizon=HORIZON, levels=LEVELS)
    ended = threading.Event()
    metrics.set_serving("v1", "gru", time.time() - 60, time.time() - 90)
    metrics.retrain_due.set(0.5)
    metrics.broker_last_contact.set_to_current_time()
    metrics.retrain_deadline.set(600)

    def work() -> None:
        while not ended.wait(0.1):
            turn(metrics)

    hooks = Hooks(lambda: {"ok": True}, lambda: {"ready": True}, dict, str)
    server = HttpServer(HttpSpec(port=0), metrics.registry, hooks)
    thread = threading.Thread(target=work)
    server.start()
    thread.start()
    try:
        yield server.port
    finally:
        ended.set()
        thread.join()
        server.close()


def turn(metrics: Metrics) -> None:
    """What a turn of the loop and all that happens now and then would report."""
    now = time.time()
    metrics.state.state(State.RUNNING)
    metrics.ready.set(1)
    metrics.loop_iterations.inc()
    metrics.loop_last_iteration.set(now)
    for stage in Stage:
        with metrics.stage(stage):
            pass
    metrics.batch_size.observe(10)
    metrics.ticks[Outcome.ACCEPTED].inc(9)
    metrics.ticks[Outcome.DEAD_LETTERED].inc()
    metrics.dead_letters[Reason.NULL].inc()
    metrics.consumed_bytes.inc(700)
    metrics.produced_bytes.inc(5000)
    metrics.last_tick.set(now)
    metrics.set_lag({0: 3, 1: 0})
    metrics.commits.inc()
    metrics.predictions["ok"].inc(9)
    metrics.prediction_latency.observe_same(0.004, 9)
    metrics.event_to_prediction.observe_many(np.full(9, 0.3))
    metrics.last_prediction.set(now)
    metrics.rebuilds.observe(2)
    metrics.observe_scores(
        scored=np.full(HORIZON, 9),
        absolute_error=np.full(HORIZON, 4.0),
        last_value_absolute_error=np.full(HORIZON, 5.0),
        pinball_loss=np.full(HORIZON, 2.0),
        last_value_pinball_loss=np.full(HORIZON, 2.5),
        quantile_scored=np.full(len(LEVELS), 27),
        quantile_covered=np.array(LEVELS) * 27,
    )
    metrics.set_expert_weights(["network", "last_value"], [0.7, 0.3])
    metrics.observe_series("a", 5.0, np.ones((HORIZON, len(LEVELS)), np.float32))
    metrics.retrain_began(now)
    metrics.retrain_ended("promoted", 20.0, now, {"candidate": 0.7, "serving": 0.8, "last_value": 1.0})
    metrics.compiles[Phase.STARTUP].inc()


def test_panels_show_numbers_and_alerts_can_see(tmp_path: Path) -> None:
    with every_metric_moves() as port, scraping(port, tmp_path) as prometheus:
        await_data(prometheus, panel_queries(), lambda value: not math.isnan(value))
        await_data(prometheus, alert_queries(), lambda _: True)
        assert prometheus.firing("critical", "warning", "info") == set()


@contextmanager
def demo(folder: Path, output: Path) -> Iterator[subprocess.Popen[bytes]]:
    """The demo, which lists the first of its series; its files are in a folder, what it says is on another."""
    command = [sys.executable, "-m", "forecaster.demo"]
    environ = {**os.environ, "TMPDIR": str(folder)}
    with (
        output.open("wb") as said,
        subprocess.Popen(command, stdout=said, stderr=said, env=environ, start_new_session=True) as process,
    ):
        try:
            yield process
        finally:
            process.kill()


def await_stages(process: subprocess.Popen[bytes], output: Path) -> None:
    """Wait until the demo has told all of its stages."""
    deadline = time.monotonic() + DEMO_S
    while left := {stage for stage in STAGES if f"\n{stage}: " not in "\n" + output.read_text()}:
        assert process.poll() is None, output.read_text()
        assert time.monotonic() < deadline, f"not told: {left}\n{output.read_text()}"
        time.sleep(0.1)


def served_port(process: subprocess.Popen[bytes], output: Path) -> int:
    """The port that the daemon among the children of the demo listens on, once it does."""
    deadline = time.monotonic() + DEMO_S
    while time.monotonic() < deadline:
        assert process.poll() is None, output.read_text()
        for child in psutil.Process(process.pid).children(recursive=True):
            with suppress(psutil.Error):
                if "run" in child.cmdline():
                    for connection in child.net_connections("tcp"):
                        if connection.status == psutil.CONN_LISTEN:
                            return int(connection.laddr.port)
        time.sleep(0.1)
    raise AssertionError(f"nobody listens:\n{output.read_text()}")


@pytest.mark.timeout(2 * DEMO_S)
def test_the_demo_reaches_every_stage_has_data_for_every_panel_and_leaves_nothing_behind(
    tmp_path: Path,
) -> None:
    queries = {
        name: query.replace('series="a"', f'series="{LISTED}"') for name, query in panel_queries().items()
    }
    folder, output = tmp_path / "demo.d", tmp_path / "said"
    folder.mkdir()
    with demo(folder, output) as process:
        with scraping(served_port(process, output), tmp_path) as prometheus:
            await_data(prometheus, queries, lambda _: True, DEMO_S)
            await_data(prometheus, alert_queries(), lambda _: True)
            # How fast this machine is, and what else it does, is no matter here.
            assert prometheus.firing("critical") <= {"ForecasterLatencyBudgetBurnsFast"}
        await_stages(process, output)
        children = psutil.Process(process.pid).children(recursive=True)
        assert len(children) >= 3  # broker, source, daemon
        process.send_signal(signal.SIGINT)
        assert process.wait(30) == 0
    assert "grid.load.kw" in output.read_text()  # the last picture stays on the screen
    assert not any(child.is_running() and child.status() != psutil.STATUS_ZOMBIE for child in children)
    assert list(folder.iterdir()) == []
