"""What this process may use: memory and cores of the machine, or of its cgroup; and giving memory back."""

import ctypes
import os
from contextlib import suppress
from pathlib import Path

import psutil


def memory_limit_bytes(cgroup: Path = Path("/sys/fs/cgroup")) -> int:
    """The smaller of the machine's memory and the cgroup's limit (v2, then v1)."""
    limits = [psutil.virtual_memory().total]
    for name in ("memory.max", "memory/memory.limit_in_bytes"):
        words = _read(cgroup / name).split()
        limits += [int(word) for word in words if word.isdigit()]
    return min(limits)


def cpu_cores(cgroup: Path = Path("/sys/fs/cgroup")) -> float:
    """The cores that this process may use: those it may run on, or less by the cgroup's quota (v2)."""
    cores = float(len(psutil.Process().cpu_affinity() or ()) or psutil.cpu_count() or 1)
    quota, _, period = _read(cgroup / "cpu.max").partition(" ")
    return min(cores, int(quota) / int(period)) if quota.isdigit() else cores


def compute_on_one_core() -> None:
    """Give XLA one thread, unless the environment says how many (decision 48); to be said before XLA makes any."""
    os.environ.setdefault("PJRT_NPROC", "1")


def give_back() -> None:
    """Let the system have memory that was freed; glibc keeps it, after compiling more than all that serving takes."""
    with suppress(AttributeError):  # other C libraries have no such function
        ctypes.CDLL(None).malloc_trim(0)


def _read(path: Path) -> str:
    try:
        return path.read_text(encoding="ascii")
    except OSError:
        return ""
