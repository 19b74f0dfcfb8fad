"""Something that runs beside a test, on a thread of its own."""

import threading
from abc import ABC, abstractmethod
from types import TracebackType
from typing import Self


class Background(ABC):
    """Runs from entering to leaving."""

    def __init__(self, name: str) -> None:
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, name=name, daemon=True)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._stop.set()
        self._thread.join()
        self._close()

    @abstractmethod
    def _run(self) -> None:
        """What it does until `_stop` is set."""

    def _close(self) -> None:  # noqa: B027 - not all have something to close
        """What is to be done once that has ended."""
