"""Rights (ACLs): what forecaster has to be allowed, and what of it the broker does not allow.

Comes in: an admin client's answers. Goes out: sentences that name the right, with the keys that they are about. Who may
read or write something may see it; what may not be seen is, to the broker, not there.
"""

from collections.abc import Iterator, Mapping
from typing import Any

from kafka.errors import AuthorizationError, KafkaError

from forecaster.shell.kafka.spec import KafkaSpec, TopicsSpec

ON_TOPICS = {
    "ticks": ("Read",),
    "predictions": ("Write",),
    "dead_letters": ("Write",),
    "control": ("Read", "Write"),
    "models": ("Read", "Write"),
    "state": ("Read", "Write"),
}
"""What a worker that answers and trains does with each topic."""


def by_role(topics: TopicsSpec) -> dict[str, str]:
    """Names of the topics, by what they are to us."""
    return {role: getattr(topics, role) for role in ON_TOPICS}


def needed(role: str) -> str:
    """In words, for the topic of this role."""
    return " and ".join(ON_TOPICS[role])


def denied(client: Any, spec: KafkaSpec, topics: TopicsSpec) -> Iterator[tuple[str, str]]:
    """Key and sentence of what is missing on the topics that may be seen, the group, and the transactional id.

    Asks the broker; raises KafkaError.
    """
    allowed = {topic["name"]: _names(topic) for topic in client.describe_topics()}
    for role, name in by_role(topics).items():
        if lacking := _lacking(ON_TOPICS[role], allowed.get(name)):
            key = f"topics.{role}"
            yield key, f"{key} = {name!r}: no right to {' and '.join(lacking)}; allow it on the topic"
    if _lacking(("Read",), _on_group(client, spec.group_id)):
        key = "kafka.group_id"
        yield key, f"{key} = {spec.group_id!r}: no right to Read; allow it on the group"
    identity = spec.stable_transactional_id
    if spec.delivery == "exactly_once" and not _sees_identity(client, identity):
        lacks = (
            f"no right to Write as {identity!r} (kafka.transactional_id); allow it on the transactional id"
        )
        yield "kafka.delivery", f'kafka.delivery = "exactly_once": {lacks}'


def _on_group(client: Any, group: str) -> set[str] | None:
    try:
        return _names(client.describe_groups([group])[group])
    except AuthorizationError:
        return set()
    except KafkaError:  # its coordinator is on its way, or the broker knows no such question
        return None
    except ValueError:  # the library knows no such right
        return None


def _sees_identity(client: Any, identity: str) -> bool:
    """Whether it may be described: nothing tells whether one that may be seen may also be used."""
    try:
        client.describe_transactions([identity])
    except AuthorizationError:
        return False
    except KafkaError:  # nobody has used it yet
        return True
    return True


def _names(described: Mapping[str, Any]) -> set[str] | None:
    """The rights that go with a description; None where the broker does not tell them."""
    names = described.get("authorized_operations")
    return None if names is None else {name.capitalize() for name in names}


def _lacking(wanted: tuple[str, ...], allowed: set[str] | None) -> list[str]:
    return [right for right in wanted if allowed is not None and right not in allowed]
