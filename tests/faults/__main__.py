"""`python -m tests.faults`: the whole catalogue with several seeds, and its report, docs/faults.md.

A long catalogue can be run in parts (`--add -k word`).
"""

import argparse
import sys
import time

import pytest

from tests.faults.catalogue import FAULTS
from tests.faults.report import Findings, stamp


class Notes:
    """A pytest plugin: writes down what becomes of the tests, by the faults that they do."""

    def __init__(self, findings: Findings) -> None:
        self._findings = findings

    def pytest_itemcollected(self, item: pytest.Item) -> None:
        """Note on each test which faults it does."""
        test = item.nodeid.split("[")[0]
        named = [name for mark in item.iter_markers("fault") for name in mark.args]
        named += [name for name, fault in FAULTS.items() if test.startswith(fault.elsewhere or ("-",))]
        item.user_properties.append(("faults", " ".join(named)))

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        """Count; a fixture that fails counts as well."""
        noted = dict(report.user_properties)
        test = report.nodeid.rpartition("::")[2]
        for name in str(noted.get("faults", "")).split():
            if report.when == "teardown":
                self._findings.tried[name] += int(str(noted.get("tried", 1)))
            if not report.passed:
                self._findings.failure(name, test)
            elif report.when == "call":
                self._findings.passed(name, test)


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
    findings = Findings.kept() if given.add else Findings()
    began_s = time.monotonic()
    code = pytest.main(
        [
            "tests/faults",
            *sorted({test for fault in FAULTS.values() for test in fault.elsewhere}),
            "--catalogue",
            *(f"--fault-seed={seed}" for seed in seeds),
            f"--kills={given.kills}",
            f"--storms={given.storms}",
            "--timeout=7200",
            *more,
        ],
        plugins=[Notes(findings)],
    )
    only = f" ({' '.join(more)})" if more else ""
    seconds = time.monotonic() - began_s
    findings.runs.append(f"{stamp()}, seeds {seeds[0]} to {seeds[-1]}, {seconds:.0f} s{only}")
    findings.keep()
    return int(code)


if __name__ == "__main__":
    sys.exit(main())
