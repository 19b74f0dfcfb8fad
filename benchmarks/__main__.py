"""`python -m benchmarks [--quick] [--save] [NAME ...]`: prints a table for each, with the machine at the top.

Without names all of them but those that take long, within `LIMIT_S` in all. What fails or is not done by then is named
at the end, and the exit code is 1; what was measured is printed all the same. `--save` keeps the numbers in
benchmarks/results/.
"""

import argparse
import importlib
import json
import signal
import sys
import time
from datetime import UTC, datetime
from pathlib import Path
from types import FrameType

from benchmarks import report
from benchmarks.report import Row
from forecaster.shell.limits import compute_on_one_core

NAMES = {
    "compute": "The compute alone",
    "encode": "Messages",
    "startup": "From start to ready",
    "throughput": "Through a backlog on Apache Kafka",
    "latency": "At 1,000 ticks/s on Apache Kafka",
    "delivery": "Delivery promises",
}
LONG = {"restart": "From a restart to the first new prediction"}
"""Only where they are named."""
LIMIT_S = 600
LONG_S = 1200
RESULTS = Path(__file__).parent / "results"


def main() -> int:
    """Run what is asked for; the exit code."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description="How fast, and at what cost.")
    names = f"of {', '.join(NAMES)}; without: all of these; or {', '.join(LONG)}"
    parser.add_argument("names", nargs="*", metavar="NAME", help=names)
    parser.add_argument("--quick", action="store_true", help="smaller: shows that everything runs")
    parser.add_argument("--save", action="store_true", help=f"keep the numbers in {RESULTS.name}/")
    arguments = parser.parse_args()
    known = NAMES | LONG
    if unknown := set(arguments.names) - known.keys():
        parser.error(f"there is no benchmark {', '.join(sorted(unknown))}; there are {', '.join(known)}")
    limit_s = LONG_S if set(arguments.names) & LONG.keys() else LIMIT_S
    signal.signal(signal.SIGALRM, _time_is_up)
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    signal.alarm(limit_s)
    compute_on_one_core()  # as a worker does
    _head(quick=arguments.quick)
    measured: dict[str, list[Row]] = {}
    failed: list[str] = []
    began_s = time.monotonic()
    for name in arguments.names or NAMES:
        rows = measured[name] = []
        try:
            for row in importlib.import_module(f"benchmarks.{name}").run(arguments.quick):
                rows.append(row)
                print(f"  {row.what}", file=sys.stderr, flush=True)
        except Exception as error:  # the others may still run
            failed.append(f"{name}: {type(error).__name__}: {error}")
        _show(name, rows)
        if time.monotonic() - began_s >= limit_s:
            break
    signal.alarm(0)
    print(f"\n{time.monotonic() - began_s:.0f} s in all")
    if arguments.save:
        print(f"kept in {_save(measured, quick=arguments.quick)}")
    for line in failed:
        print(f"not measured: {line}", file=sys.stderr)
    return 1 if failed else 0


def _head(*, quick: bool) -> None:
    print(", ".join(f"{name} {text}" for name, text in report.machine().items()))
    if quick:
        print("quick: the numbers only show that everything runs")
    if report.load() > 1:
        print(
            f"the machine is busy with something else (load {report.load():.1f}): expect worse than it can do"
        )


def _show(name: str, rows: list[Row]) -> None:
    print(
        f"\n### {(NAMES | LONG)[name]}\n\n{report.table(rows) if rows else 'nothing was measured'}",
        flush=True,
    )


def _save(measured: dict[str, list[Row]], *, quick: bool) -> Path:
    RESULTS.mkdir(exist_ok=True)
    now = datetime.now(UTC)
    path = RESULTS / f"{now:%Y-%m-%dT%H%M%SZ}.json"
    about = {"time": now.isoformat(timespec="seconds"), "quick": quick, "machine": report.machine()}
    numbers = {name: [row._asdict() for row in rows] for name, rows in measured.items()}
    path.write_text(json.dumps(about | {"measured": numbers}, indent=2, ensure_ascii=False) + "\n")
    return path


def _time_is_up(_number: int, _frame: FrameType | None) -> None:
    raise TimeoutError(f"all benchmarks together may take {LIMIT_S} s, with those that take long {LONG_S} s")


if __name__ == "__main__":
    sys.exit(main())
