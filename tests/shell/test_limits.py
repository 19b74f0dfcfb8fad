"""Freed memory goes back to the system."""

import platform

import psutil
import pytest

from forecaster.shell.limits import give_back

MB = 1 << 20


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="other C libraries are not asked")
def test_what_was_freed_is_given_back() -> None:
    process = psutil.Process()
    blocks = [bytes(2_000) for _ in range(100_000)]
    last = blocks.pop()  # keeps the heap from shrinking by itself
    held = process.memory_info().rss
    del blocks
    give_back()
    assert process.memory_info().rss < held - 100 * MB
    assert len(last) == 2_000
