"""What was measured -> Markdown tables and JSON, with the machine that it was measured on. Measures nothing."""

import os
import platform
from collections.abc import Iterable
from importlib.metadata import version
from pathlib import Path
from typing import NamedTuple

import psutil

PACKAGES = ("jax", "flax", "kafka-python")


class Row(NamedTuple):
    """One number, and under which conditions it holds."""

    what: str
    value: float
    unit: str
    note: str = ""


def machine() -> dict[str, str]:
    """What the numbers depend on."""
    memory_gb = psutil.virtual_memory().total / 2**30
    return {
        "CPU": _cpu_model(),
        "cores": str(len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()),
        "memory": f"{memory_gb:.0f} GB",
        "system": f"{platform.system()} {platform.release()}",
        "Python": platform.python_version(),
        **{package: version(package) for package in PACKAGES},
    }


def load() -> float:
    """Processes that want a core, mean of the last minute: well above 0 before the start spoils everything."""
    return os.getloadavg()[0]


def table(rows: Iterable[Row]) -> str:
    """Rows as a Markdown table."""
    cells = [(row.what, f"{_short(row.value)} {row.unit}".strip(), row.note) for row in rows]
    cells = [("", "measured", "how"), *cells]
    widths = [max(len(row[i]) for row in cells) for i in range(3)]
    lines = [
        f"| {' | '.join(text.ljust(width) for text, width in zip(row, widths, strict=True))} |"
        for row in cells
    ]
    return "\n".join([lines[0], f"|{'|'.join('-' * (width + 2) for width in widths)}|", *lines[1:]])


def _short(value: float) -> str:
    """Three figures, and no exponent."""
    if abs(value) >= 100:
        return f"{value:,.0f}"
    return f"{value:.3g}"


def _cpu_model() -> str:
    """As Linux tells it, else what the platform says."""
    info = Path("/proc/cpuinfo")
    names = info.read_text().splitlines() if info.exists() else []
    found = (line.partition(":")[2].strip() for line in names if line.startswith("model name"))
    return next(found, platform.processor() or platform.machine())
