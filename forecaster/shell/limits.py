"""What this process may use: memory and cores of the machine, or of its cgroup; and giving memory back."""

import ctypes
import os
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path, PurePosixPath

import psutil

ROOT = Path("/sys/fs/cgroup")
OWN = Path("/proc/self/cgroup")


def memory_limit_bytes(root: Path = ROOT, own: Path = OWN) -> int:
    """The smallest of the machine's memory and the limits of our cgroup and those above it (v2; of v1 the root's)."""
    limits = [psutil.virtual_memory().total]
    for file in [
        *(group / "memory.max" for group in _groups(root, own)),
        root / "memory/memory.limit_in_bytes",
    ]:
        limits += [int(word) for word in _read(file).split() if word.isdigit()]
    return min(limits)


def cpu_cores(root: Path = ROOT, own: Path = OWN) -> float:
    """The cores that this process may use: those it may run on, or less by the quota of a cgroup (v2)."""
    may_run_on: Callable[[], list[int]] = getattr(psutil.Process(), "cpu_affinity", list)  # none on macOS
    cores = [float(len(may_run_on()) or psutil.cpu_count() or 1)]
    for group in _groups(root, own):
        quota, _, period = _read(group / "cpu.max").partition(" ")
        cores += [int(quota) / int(period)] if quota.isdigit() else []
    return min(cores)


def _groups(root: Path, own: Path) -> list[Path]:
    """Our cgroup and those above it, as far as they are seen from here (v2)."""
    paths = [line.removeprefix("0::/") for line in _read(own).splitlines() if line.startswith("0::/")]
    seen = paths and ".." not in paths[0]  # else what we see is not above it
    inner = PurePosixPath(paths[0] if seen else "")
    return [root / group for group in (inner, *inner.parents)]


def compute_on_one_core() -> None:
    """Give XLA one thread, unless the environment says how many (decision 48); to be said before XLA makes any."""
    os.environ.setdefault("PJRT_NPROC", "1")


def give_back() -> None:
    """Let the system have memory that was freed; glibc keeps it, after compiling more than all that serving takes."""
    with suppress(AttributeError):  # other C libraries have no such function
        ctypes.CDLL(None).malloc_trim(0)


def _read(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8", errors="replace")
    except OSError:
        return ""
