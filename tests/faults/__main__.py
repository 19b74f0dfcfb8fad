"""`python -m tests.faults`: the whole catalogue with several seeds, and its report, docs/faults.md.

Results are kept in .cache/faults.json, so that a long catalogue can be run in parts (`--add -k word`).
"""

import argparse
import json
import os
import platform
import subprocess
import sys
import time
from collections import Counter
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest

from tests.faults.catalogue import FAULTS, LAWS

ROOT = Path(__file__).resolve().parents[2]
REPORT = ROOT / "docs" / "faults.md"
KEPT = ROOT / ".cache" / "faults.json"
HEAD = """\
# Faults

Written by `make faults`, which does these faults to real workers on Apache Kafka and asks an oracle that knows nothing
of them what they ought to have answered (`tests/faults`). Continuous integration runs a selection with one seed. A row
counts what was done in the runs that are named here, and nothing else. The laws are those of `tests/faults`; tests of
other folders that are counted here (`tests/faults/catalogue.py` names them) assert what they are called after. What one
test does for several faults together is counted for each of them.
"""


class Results:
    """A pytest plugin: how often each fault was tried, and which tests failed."""

    def __init__(self) -> None:
        self.runs: list[str] = []
        self.tried: Counter[str] = Counter()
        self.failed: dict[str, list[str]] = {}

    def pytest_itemcollected(self, item: pytest.Item) -> None:
        """Note on each test which faults it does."""
        test = item.nodeid.split("[")[0]
        named = [name for mark in item.iter_markers("fault") for name in mark.args]
        named += [name for name, fault in FAULTS.items() if test.startswith(fault.elsewhere or ("-",))]
        item.user_properties.append(("faults", " ".join(named)))

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        """Count; a fixture that fails counts as well."""
        noted = dict(report.user_properties)
        for name in str(noted.get("faults", "")).split():
            if report.when == "teardown":
                self.tried[name] += int(str(noted.get("tried", 1)))
            if not report.passed:
                self.failed.setdefault(name, []).append(
                    f"{report.nodeid.rpartition('::')[2]} ({report.outcome})"
                )

    def add(self, kept: dict[str, Any]) -> None:
        """What earlier runs have found goes before this one's."""
        self.runs = kept["runs"] + self.runs
        self.tried.update(kept["tried"])
        for name, failed in kept["failed"].items():
            self.failed[name] = failed + self.failed.get(name, [])

    def page(self) -> str:
        """The report."""
        laws = [f"* **{name}** {law}" for name, law in LAWS.items()]
        table = ["| | fault | tried | laws checked | result |", "|---|---|---:|---|---|"]
        for name, fault in FAULTS.items():
            tried, failed = self.tried[name], self.failed.get(name)
            verdict = "not tried" if not tried else "held" if not failed else "FAILED: " + "; ".join(failed)
            table.append(
                f"| {name} | {fault.what} | {tried or ''} | {fault.laws if tried else ''} | {verdict} |"
            )
        runs = [f"* {run}" for run in self.runs]
        return "\n".join([HEAD, *table, "", "## Laws", "", *laws, "", "## Runs", "", *runs, ""])


def main() -> int:
    """Run, write, and say by the exit code whether all held."""
    parser = argparse.ArgumentParser(
        prog="python -m tests.faults", description="What is unknown here is for pytest, as `-k word`."
    )
    parser.add_argument("--seeds", type=int, default=2, help="how many")
    parser.add_argument("--first", type=int, default=1, help="of the seeds, which are consecutive")
    parser.add_argument("--kills", type=int, default=50, help="at random moments, for each promise and seed")
    parser.add_argument("--storms", type=int, default=6, help="joins and leaves, for each promise and seed")
    parser.add_argument("--add", action="store_true", help="to the results of earlier runs")
    given, more = parser.parse_known_args()
    seeds = range(given.first, given.first + given.seeds)
    results = Results()
    began_s = time.monotonic()
    code = pytest.main(
        [
            "tests/faults",
            *sorted({test for fault in FAULTS.values() for test in fault.elsewhere}),
            "--catalogue",
            *(f"--fault-seed={seed}" for seed in seeds),
            f"--kills={given.kills}",
            f"--storms={given.storms}",
            "--timeout=3600",
            *more,
        ],
        plugins=[results],
    )
    results.runs.append(_run(seeds, time.monotonic() - began_s, more))
    KEPT.parent.mkdir(exist_ok=True)
    if given.add and KEPT.exists():
        results.add(json.loads(KEPT.read_text()))
    KEPT.write_text(json.dumps(vars(results)))
    REPORT.write_text(results.page(), encoding="utf-8")
    return int(code)


def _run(seeds: range, seconds: float, more: list[str]) -> str:
    command = ["git", "describe", "--always", "--dirty"]
    commit = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False).stdout.strip()
    only = f" ({' '.join(more)})" if more else ""
    return (
        f"{datetime.now(UTC):%Y-%m-%d %H:%M} UTC, commit {commit or 'unknown'}, {os.cpu_count()} cores, Python"
        f" {platform.python_version()}, seeds {seeds[0]} to {seeds[-1]}, {seconds:.0f} s{only}"
    )


if __name__ == "__main__":
    sys.exit(main())
