"""Where a command is to write: made and tried before the work that it is for, so that nothing is lost at its end."""

import tempfile
from collections.abc import Generator
from contextlib import contextmanager
from pathlib import Path

from forecaster.errors import DataError


@contextmanager
def written_to(path: Path) -> Generator[None]:
    """What the system refuses meanwhile, as on a disk that is full, is a DataError that names the path."""
    try:
        yield
    except OSError as error:
        raise DataError(f"{path}: cannot be written to: {error.strerror or error}") from error


def prepare_folder(folder: Path) -> None:
    """Make a folder, if need be with those above it, and see that files can be made in it. Raises DataError."""
    with written_to(folder):
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder):
            pass


def prepare_file(path: Path) -> None:
    """The same for the folder of a file, which itself may be there already. Raises DataError."""
    if path.is_dir():
        raise DataError(f"{path}: cannot be written to: it is a folder; expected a file's name")
    prepare_folder(path.parent)
