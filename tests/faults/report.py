"""What the fault tests and the soak have found so far, and the page that says so, docs/faults.md.

What the page says is what later runs add to, so that a long catalogue can be run in parts. A test that failed counts as
failed until a later run passes it.
"""

import os
import platform
import re
import subprocess
from collections import Counter
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path

from tests.faults.catalogue import FAULTS, LAWS

ROOT = Path(__file__).resolve().parents[2]
PAGE = ROOT / "docs" / "faults.md"
ROW = re.compile(r"^\| (T\d+) \| .* \| (\d*) \| [^|]* \| (?:FAILED: )?([^|]*) \|$", re.MULTILINE)
HELD = {"held", "not tried"}
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
        """Those of earlier runs, as the page tells them."""
        page = PAGE.read_text(encoding="utf-8") if PAGE.exists() else ""
        found = Findings()
        for name, tried, verdict in ROW.findall(page):
            found.tried[name] = int(tried or 0)
            found.failed[name] = [] if verdict in HELD else verdict.split("; ")
        found.runs = [line.removeprefix("* ") for line in _section(page, "Runs")]
        found.soak = _section(page, "Soak")
        return found

    def passed(self, fault: str, test: str) -> None:
        """It held this time."""
        self.failed[fault] = [name for name in self.failed.get(fault, []) if name != test]

    def failure(self, fault: str, test: str) -> None:
        """It did not."""
        self.passed(fault, test)
        self.failed[fault].append(test)

    def keep(self) -> None:
        """For the next run, and for readers."""
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


def _section(page: str, title: str) -> list[str]:
    """The lines of a section."""
    body = page.partition(f"\n## {title}\n")[2].partition("\n## ")[0]
    return body.strip().splitlines()


def stamp() -> str:
    """When, of what, and on what."""
    command = ["git", "describe", "--always", "--dirty"]
    commit = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False).stdout.strip()
    return (
        f"{datetime.now(UTC):%Y-%m-%d %H:%M} UTC, commit {commit or 'unknown'}, {os.cpu_count()} cores,"
        f" Python {platform.python_version()}"
    )
