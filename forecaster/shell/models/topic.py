"""The models topic on the broker: publish, serve, list, roll back, prune, import; and follow it without
waiting.

Comes in: stored models. Goes out: records; events for the loop. Promotion and rollback write the `serving`
record and nothing else.
"""

import time
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass
from pathlib import Path

from forecaster.errors import BrokerError, DataError
from forecaster.shell.kafka.log import Follower, read_whole
from forecaster.shell.kafka.sink import Sink
from forecaster.shell.kafka.spec import KafkaSpec
from forecaster.shell.models.codec import (
    MOST_BYTES,
    Message,
    Refused,
    Serving,
    Stored,
    encode,
    encode_serving,
    parse,
    tombstones,
)
from forecaster.shell.models.registry import Event, NowServing, Registry, to_keep

_TIMEOUT_S = 60.0


@dataclass(frozen=True)
class Entry:
    """A line of `models list`."""

    stored: Stored  # without its file
    serving: bool


class Models:
    """The topic for commands and for the trainer: each call reads what it needs, and waits until it is
    written.

    Raises BrokerError when the broker does not answer, DataError when a version cannot be used.
    """

    def __init__(self, spec: KafkaSpec, topic: str, now: Callable[[], float] = time.time) -> None:
        self._spec = spec
        self._topic = topic
        self._now = now

    def publish(self, stored: Stored) -> None:
        """Write a model. It does not serve by that."""
        self._write(encode(stored))

    def serve(self, version: str, reason: str) -> Serving:
        """Make a version serve; it has to be on the topic, whole. Where it serves already, nothing is written: else it
        would be what served before itself, and the next roll-back would find nothing else.
        """
        registry = self.read()
        if version not in registry.cards:
            raise DataError(
                f"model {version!r} is not on topic {self._topic!r}; there are {_names(registry)}"
            )
        if registry.serving is not None and registry.serving.version == version:
            return registry.serving
        previous = registry.serving.version if registry.serving is not None else ""
        serving = Serving(version, previous, reason, self._now())
        self._write([encode_serving(serving)])
        return serving

    def roll_back(self, reason: str = "rollback", version: str = "", instead_of: str = "") -> Serving:
        """Make the version that served before serve again, or the one that is named; what serves then.

        Where it is to be `instead_of` a version that serves no longer, nothing changes.
        """
        registry = self.read()
        if instead_of and registry.serving is not None and registry.serving.version != instead_of:
            return registry.serving
        target = version or (registry.serving.previous if registry.serving is not None else "")
        if not target:
            raise DataError(
                f"no version served before on topic {self._topic!r}; there are {_names(registry)}"
            )
        return self.serve(target, reason)

    def versions(self) -> list[Entry]:
        """All usable versions, oldest first."""
        registry = self.read()
        serving = registry.serving.version if registry.serving is not None else None
        return [Entry(stored, stored.version == serving) for stored in registry.cards.values()]

    def fetch(self, version: str = "") -> Stored | None:
        """A version with its file; without a name the one that serves. None if there is none."""
        registry = self.read(pinned={version})
        if not version and registry.serving is not None:
            version = registry.serving.version
        if registry.missing:
            registry = self.read(pinned={version})
        return registry.file(version)

    def prune(self, keep: int) -> list[str]:
        """Remove all but the last `keep`, what serves and served before, and the ancestors of all these."""
        registry = self.read()
        kept = to_keep(registry, keep) | registry.newer
        kept |= {refused.version for refused in registry.unfinished()[-1:]}  # may still be arriving
        gone = [version for version in registry.chunks if version not in kept]
        self._write(
            [message for version in gone for message in tombstones(version, registry.chunks[version])]
        )
        return gone

    def import_file(self, path: Path) -> Stored:
        """Publish a model file; it does not serve by that."""
        try:
            size = path.stat().st_size
            if size > MOST_BYTES:
                raise DataError(f"{path}: {size:,} bytes, a model has at most {MOST_BYTES:,}")
            parsed = parse(path.read_bytes())
        except OSError as error:
            raise DataError(f"{path}: {error.strerror}") from error
        if isinstance(parsed, Refused):
            raise DataError(f"{path}: {parsed.message}")
        self.publish(parsed)
        return parsed

    def read(self, pinned: Collection[str] = ()) -> Registry:
        """The topic as it is now; the files of the pinned versions are held whatever their age."""
        registry = Registry(pinned=pinned)
        for records in read_whole(self._spec, self._topic, _TIMEOUT_S):
            registry.feed(records)
        return registry

    def _write(self, messages: Sequence[Message]) -> None:
        sink = Sink(self._spec)
        try:
            for key, value, headers in messages:
                sink.send(self._topic, value, key, headers=headers, partition=0)
                if not sink.room():
                    sink.flush(_TIMEOUT_S)
            if not sink.flush(_TIMEOUT_S):
                raise BrokerError(f"topic {self._topic!r} could not be written: {sink.trouble}")
        finally:
            sink.close(timeout_s=1.0)


class ModelsFollower:
    """What happens on the models topic, for a loop that may not wait.

    `poll` gives models as they arrive, the one that serves from now on, and what was refused: then the one
    before keeps serving. While the topic is first read, only what serves at its end counts.
    """

    def __init__(self, spec: KafkaSpec, topic: str, *, interval_s: float = 0.2) -> None:
        self._make_follower = lambda: Follower(spec, {topic: "beginning"}, interval_s=interval_s)
        self._served: Serving | None = None
        self._first = True
        self._start(Registry())

    @property
    def registry(self) -> Registry:
        """The topic as far as it was read."""
        return self._registry

    @property
    def caught_up(self) -> bool:
        """Whether everything that was there at the start has been read."""
        return not self._catching_up

    def poll(self, timeout_s: float = 0.0) -> list[Event]:
        """What has happened since the last call."""
        events = self._registry.feed(self._follower.poll(timeout_s))
        if self._catching_up:
            events = self._catch_up(events)
        if self._registry.missing:  # an old version was ordered to serve again
            self._follower.close()
            self._start(Registry(pinned={self._registry.missing}))
        return [event for event in events if self._is_new(event)]

    def close(self) -> None:
        """End the client. Never raises."""
        self._follower.close()

    def _start(self, registry: Registry) -> None:
        self._registry = registry
        self._follower = self._make_follower()
        self._catching_up = True
        self._refused: list[Event] = []

    def _catch_up(self, events: list[Event]) -> list[Event]:
        """Hold everything back until the end: then what was refused, and the one model that serves."""
        if self._first:
            self._refused += [event for event in events if isinstance(event, Refused)]
        if not self._follower.caught_up:
            return []
        self._catching_up = self._first = False
        serving = self._registry.serving
        stored = self._registry.file(serving.version) if serving is not None else None
        if serving is None or stored is None:
            return self._refused
        return [*self._refused, NowServing(stored, serving)]

    def _is_new(self, event: Event) -> bool:
        if not isinstance(event, NowServing):
            return True
        known, self._served = self._served, event.serving
        return known != event.serving


def _names(registry: Registry) -> str:
    return ", ".join(list(registry.cards)[-10:]) or "none"
