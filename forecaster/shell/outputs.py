"""Where a command is to write: made and tried before the work that it is for, so that nothing is lost at its end."""

import tempfile
from pathlib import Path

from forecaster.errors import DataError


def prepare_folder(folder: Path) -> None:
    """Make a folder, if need be with those above it, and see that files can be made in it. Raises DataError."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder):
            pass
    except OSError as error:
        raise DataError(f"{folder}: cannot be written to: {error.strerror or error}") from error


def prepare_file(path: Path) -> None:
    """The same for the folder of a file, which itself may be there already. Raises DataError."""
    if path.is_dir():
        raise DataError(f"{path}: cannot be written to: it is a folder; expected a file's name")
    prepare_folder(path.parent)
