"""A configuration against the world: every reason why a daemon started with it would not do its work.

Comes in: a checked configuration. Goes out: errors that say key, value and mend, and by their exit code whose fault
it is. Nothing is raised, created or changed.
"""

import socket
from collections.abc import Iterable, Iterator
from math import isfinite
from pathlib import Path

from forecaster.config import Config, every_key
from forecaster.core.tick import Reject, Tick, TickSpec, make_decoder
from forecaster.errors import BrokerError, ConfigError, ForecasterError, RefusedError
from forecaster.shell.kafka.admin import Admin
from forecaster.shell.kafka.log import Log

LOOKED_AT = 10  # offsets of each partition, newest: some may be markers of transactions


def problems(config: Config) -> list[ForecasterError]:
    """What is missing or cannot work, one error each; empty when a daemon could start."""
    return [*_files(config), *_port(config), *_broker(config)]


def _files(config: Config) -> Iterator[ForecasterError]:
    for key in every_key():
        path = getattr(getattr(config, key.section), key.name)
        if isinstance(path, Path):
            try:
                path.read_bytes()
            except OSError as error:
                yield ConfigError(
                    f"{key.dotted} = {str(path)!r}: cannot be read: {error.strerror}; mend path or rights"
                )


def _port(config: Config) -> Iterator[ForecasterError]:
    host, port = config.http.host, config.http.port
    if not config.http.enabled or not port:
        return
    try:
        family = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0][0]
        with socket.socket(family, socket.SOCK_STREAM) as door:
            door.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            door.bind((host, port))
    except OSError as error:
        yield ConfigError(
            f"http.host = {host!r}, http.port = {port}: cannot be listened on: {error.strerror}; choose"
            f" another, or stop what uses it (a daemon that runs already?)"
        )


def _broker(config: Config) -> Iterator[ForecasterError]:
    try:
        admin = Admin(config.kafka)
    except (ConfigError, RefusedError) as error:  # they name key and mend
        yield error
        return
    except ForecasterError as error:
        servers = config.kafka.bootstrap_servers
        yield BrokerError(f"kafka.bootstrap_servers = {servers!r}: {error}; mend address or security")
        return
    try:
        yield from map(ConfigError, admin.check(config.topics, created=config.topics.create))
        yield from map(ConfigError, admin.unfit(config.topics))
        denied = admin.denied(config.topics)
        yield from map(RefusedError, denied.values())
        if "topics.ticks" not in denied and config.topics.ticks in admin.describe([config.topics.ticks]):
            yield from _reading(config)
    except ForecasterError as error:
        yield error
    finally:
        admin.close()


def _reading(config: Config) -> Iterator[ForecasterError]:
    """Whether the ticks can be read, where no description tells of the right, and what the newest of them hold."""
    log, topic = Log(config.kafka), config.topics.ticks
    try:
        there = log.spans(topic, log.partitions(topic))
        newest = {p: (max(start, end - LOOKED_AT), end) for p, (start, end) in there.items()}
        records = [r for some in log.read(topic, newest, config.kafka.request_timeout_s) for r in some]
    except ForecasterError as error:
        yield type(error)(f"topics.ticks = {topic!r}: cannot be read: {error}")
        return
    finally:
        log.close()
    decode = make_decoder(config.tick)
    answers = [decode(r.key, r.value, r.timestamp_ms) for r in records]
    ticks = [answer for answer in answers if isinstance(answer, Tick)]
    refused = [answer for answer in answers if isinstance(answer, Reject)]
    if refused and not ticks:
        yield ConfigError(
            f"topics.ticks = {topic!r}: none of the newest {len(refused)} messages is a tick, they say:"
            f" {refused[-1].message}; mend [tick], or what is sent"
        )
    yield from _covariates(config.tick, ticks)


def _covariates(spec: TickSpec, found: Iterable[Tick]) -> Iterator[ForecasterError]:
    """Covariates that are in none of the newest ticks: each may be missing now and then, but not always."""
    for name, values in zip(
        spec.covariates, zip(*(tick.covariates for tick in found), strict=True), strict=False
    ):
        if not any(map(isfinite, values)):
            yield ConfigError(
                f"tick.covariates: {name!r} is a number in none of the newest {len(values)} ticks; mend the name, or"
                f" what is sent, or leave it out"
            )
