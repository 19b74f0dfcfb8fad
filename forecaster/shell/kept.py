"""Compiled programs on disk, in the directory in which JAX is told to keep its own: the next start finds them there.

JAX finds a program by what it is lowered to, so it has to trace and lower it first, which takes Python longer than
loading takes. Here programs are found by what they are made from: recipe, code, versions, processor, switches. A file
that is missing or damaged is made anew; a disk that takes nothing delays the next start and nothing else. What no start
has read for a while, as after an upgrade, is removed when something new is kept.
"""

import hashlib
import os
import pickle
import platform
import time
from collections.abc import Callable
from contextlib import suppress
from functools import cache
from importlib import metadata, resources
from pathlib import Path
from typing import Any

import jax
import structlog
from jax.experimental import serialize_executable

from forecaster.core.programs import Key, Recipe

SWITCHES = "JAX_", "XLA_", "PJRT_"
"""Variables of the environment that can change what is compiled begin like this."""
PLACES = "JAX_COMPILATION_CACHE_DIR", "JAX_PERSISTENT_CACHE_"
"""Those that only say where and when it is kept."""
UNREAD_S = 30 * 86_400.0
"""What no start has read for so long is removed."""
_DIGEST = hashlib.sha256().digest_size
_log = structlog.get_logger(__name__)


def take_over() -> None:
    """Keep programs in JAX's stead; to be said before anything is compiled.

    A program that JAX has read back itself cannot be written again: what comes of it lacks its functions.
    """
    jax.config.update("jax_enable_compilation_cache", False)


def from_disk(recipe: Recipe) -> Callable[[Key], Any]:
    """The recipe, of which what has been made before is read; as it is where there is no place, or JAX keeps them."""
    place = os.environ.get("JAX_COMPILATION_CACHE_DIR")
    config: Any = jax.config
    if not place or config.jax_enable_compilation_cache:
        return recipe

    def program(key: Key) -> Any:
        file = Path(place, f"forecaster-{_digest(recipe, key)}")
        try:
            found = _load(file.read_bytes())
            with suppress(OSError):  # a directory that is only read
                os.utime(file)
            return found
        except FileNotFoundError:
            pass
        except Exception as error:  # whatever is wrong with it, it can be made anew
            _log.warning("kept_program_unusable", file=str(file), error=repr(error), mend="compiled anew")
        made = recipe(key)
        try:
            _store(file, made)
            _forget(file.parent)
        except OSError as error:
            _log.warning("program_not_kept", file=str(file), error=str(error), mend="compiled at each start")
        return made

    return program


def _load(data: bytes) -> Any:
    if hashlib.sha256(data[_DIGEST:]).digest() != data[:_DIGEST]:
        raise ValueError("damaged: its digest does not fit")
    return serialize_executable.deserialize_and_load(*pickle.loads(data[_DIGEST:]))  # noqa: S301  (it is code anyway)


def _store(file: Path, made: Any) -> None:
    """Whole or not at all."""
    body = pickle.dumps(serialize_executable.serialize(made))
    file.parent.mkdir(0o700, parents=True, exist_ok=True)
    part = file.with_name(f".{file.name}-{os.getpid()}")
    try:
        part.write_bytes(hashlib.sha256(body).digest() + body)
        part.replace(file)
    finally:
        part.unlink(missing_ok=True)


def _forget(place: Path) -> None:
    """Remove what was written and read so long ago that nobody will ask for it again; it can be made anew."""
    long_ago_s = time.time() - UNREAD_S
    for file in place.glob("forecaster-*"):
        with suppress(FileNotFoundError):  # another worker was first
            if file.stat().st_mtime < long_ago_s:
                file.unlink()


def _digest(recipe: Recipe, key: Key) -> str:
    return hashlib.sha256(repr((recipe, key, _maker(), _switches())).encode()).hexdigest()


@cache
def _maker() -> str:
    """What compiles: our code, the versions of JAX, the processor."""
    core = resources.files("forecaster.core")
    sources = sorted((file.name, file.read_text()) for file in core.iterdir() if file.name.endswith(".py"))
    code = hashlib.sha256(repr(sources).encode()).hexdigest()
    return repr((code, jax.__version__, metadata.version("jaxlib"), platform.python_version(), _processor()))


def _processor() -> str:
    """What the machine code may use, as far as the system tells."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        lines = []
    kind = sorted(
        {line for line in lines if line.startswith(("model name", "flags", "Features", "CPU part"))}
    )
    return repr((platform.machine(), kind))


def _switches() -> list[tuple[str, str]]:
    return sorted(
        (k, v) for k, v in os.environ.items() if k.startswith(SWITCHES) and not k.startswith(PLACES)
    )
