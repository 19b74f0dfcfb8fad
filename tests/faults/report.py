"""What the fault tests and the soak have found so far, and the page that says so, docs/faults.md.

Findings are kept in .cache/faults.json, so that a long catalogue can be run in parts. A test that failed counts as
failed until a later run passes it.
"""

import json
import os
import platform
import subprocess
from collections import Counter
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path

from tests.faults.catalogue import FAULTS, LAWS

ROOT = Path(__file__).resolve().parents[2]
PAGE = ROOT / "docs" / "faults.md"
KEPT = ROOT / ".cache" / "faults.json"
HEAD = """\
# Faults

Written by `make faults`, which does these faults to real workers on Apache Kafka and asks an oracle that knows nothing
of them what they ought to have answered (`tests/faults`). Continuous integration runs a selection with one seed. A row
counts what was done in the runs that are named here, and nothing else; what failed is said until a later run of the
same test passes. The laws are those of `tests/faults`; tests of other folders that are counted here
(`tests/faults/catalogue.py` names them) assert what they are called after. What one test does for several faults
together is counted for each of them.
"""


@dataclass
class Findings:
    """How often each fault was tried, which tests failed last, and in which runs."""

    tried: Counter[str] = field(default_factory=Counter[str])
    failed: dict[str, list[str]] = field(default_factory=dict[str, list[str]])
    """Fault -> tests."""
    runs: list[str] = field(default_factory=list[str])
    soak: list[str] = field(default_factory=list[str])
    """Lines of the section on the last soak."""

    @staticmethod
    def kept() -> "Findings":
        """Those of earlier runs."""
        if not KEPT.exists():
            return Findings()
        found = json.loads(KEPT.read_text())
        return Findings(Counter(found["tried"]), found["failed"], found["runs"], found.get("soak", []))

    def passed(self, fault: str, test: str) -> None:
        """It held this time."""
        self.failed[fault] = [name for name in self.failed.get(fault, []) if name != test]

    def failure(self, fault: str, test: str) -> None:
        """It did not."""
        self.passed(fault, test)
        self.failed[fault].append(test)

    def keep(self) -> None:
        """For the next run, and for readers."""
        KEPT.parent.mkdir(exist_ok=True)
        KEPT.write_text(json.dumps(vars(self)))
        PAGE.write_text(self._page(), encoding="utf-8")

    def _page(self) -> str:
        laws = [f"* **{name}** {law}" for name, law in LAWS.items()]
        table = ["| | fault | tried | laws checked | result |", "|---|---|---:|---|---|"]
        for name, fault in FAULTS.items():
            tried, failed = self.tried[name], self.failed.get(name)
            verdict = "not tried" if not tried else "held" if not failed else "FAILED: " + "; ".join(failed)
            table.append(
                f"| {name} | {fault.what} | {tried or ''} | {fault.laws if tried else ''} | {verdict} |"
            )
        soak = ["", "## Soak", "", *self.soak] if self.soak else []
        runs = [f"* {run}" for run in self.runs]
        return "\n".join([HEAD, *table, *soak, "", "## Laws", "", *laws, "", "## Runs", "", *runs, ""])


def stamp() -> str:
    """When, of what, and on what."""
    command = ["git", "describe", "--always", "--dirty"]
    commit = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False).stdout.strip()
    return (
        f"{datetime.now(UTC):%Y-%m-%d %H:%M} UTC, commit {commit or 'unknown'}, {os.cpu_count()} cores,"
        f" Python {platform.python_version()}"
    )
