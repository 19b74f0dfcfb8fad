"""Everything is Any: the stubs that pyright carries describe an older kafka-python."""

from typing import Any

def __getattr__(name: str) -> Any: ...
