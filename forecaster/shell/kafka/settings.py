"""Settings of topics: what the use of each asks for, with which we make it, and what of one that is there is not so.

Comes in: the names of the topics, and an admin client's answers. Goes out: settings, and sentences with the mend.
"""

from collections.abc import Iterable, Iterator
from typing import Any

from kafka.admin import ConfigResource, ConfigResourceType
from kafka.errors import KafkaError

from forecaster.shell.kafka.rights import ON_TOPICS, by_role
from forecaster.shell.kafka.spec import KafkaSpec, TopicsSpec

POLICY, LARGEST = "cleanup.policy", "max.message.bytes"
COMPACTED = ("models", "state")
"""Topics of which the newest record of each key is kept for ever; of the others everything, for a while."""
WRITTEN = [role for role, rights in ON_TOPICS.items() if "Write" in rights]

_OFTEN = {"segment.bytes": str(64 << 20), "segment.ms": str(3_600_000)}  # only closed segments are compacted


def made_with(role: str, spec: KafkaSpec, topics: TopicsSpec) -> dict[str, str]:
    """The settings of a topic of this role that is made by us."""
    if role in COMPACTED:
        found = {POLICY: "compact", "min.cleanable.dirty.ratio": "0.2"} | (_OFTEN if role == "state" else {})
    else:
        found = {POLICY: "delete", "retention.ms": str(round(topics.create_retention_s * 1000))}
    return found | ({LARGEST: str(spec.max_message_bytes)} if role in WRITTEN else {})


def unfit(client: Any, spec: KafkaSpec, topics: TopicsSpec) -> Iterator[str]:
    """A sentence for each setting with which records are lost or refused; none where the broker does not tell it.

    Predictions and requests always have keys, so these topics may be compacted by who wants it.
    """
    names = by_role(topics)
    told = _told(client, names.values())
    for role, name in names.items():
        topic, settings = f"topics.{role} = {name!r}", told.get(name, {})
        policy, largest = settings.get(POLICY), settings.get(LARGEST)
        kept = None if policy is None else {word.strip() for word in policy.split(",")}
        if role in COMPACTED and kept is not None and kept != {"compact"}:
            why = "what is older than its retention vanishes" if "delete" in kept else "it grows for ever"
            yield f"{topic}: {POLICY} = {policy!r}: {why}; set it to compact alone"
        elif role in ("ticks", "dead_letters") and kept is not None and "compact" in kept:
            why = "only the newest of each key is kept, and what has no key is refused"
            yield f"{topic}: {POLICY} = {policy!r}: {why}; set it to delete"
        if role in WRITTEN and largest is not None and int(largest) < spec.max_message_bytes:
            most = f"kafka.max_message_bytes = {spec.max_message_bytes}"
            yield f"{topic}: {LARGEST} = {largest}: less than {most}; raise the one, or lower the other"


def _told(client: Any, names: Iterable[str]) -> dict[str, dict[str, str | None]]:
    """Settings by topic; nothing of those that are missing, or may not be asked for."""
    wanted = [ConfigResource(ConfigResourceType.TOPIC, name, [POLICY, LARGEST]) for name in names]
    try:
        found = client.describe_configs(wanted, config_filter="all").get("topic", {})
    except (KafkaError, ValueError):  # the broker knows no such question, or the library not its answer
        return {}
    return {
        name: {key: setting["value"] for key, setting in settings.items()} for name, settings in found.items()
    }
