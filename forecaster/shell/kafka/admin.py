"""Topics: what is there, what is missing, what is not as it has to be, and making it.

Comes in: the two specs. Goes out: topics on the broker, or sentences for the operator. Topics that exist
are never changed.
"""

from collections.abc import Iterable
from typing import Any

from kafka.admin import KafkaAdminClient
from kafka.errors import KafkaError, TopicAlreadyExistsError, for_code

from forecaster.errors import BrokerError
from forecaster.shell.kafka.client import common_settings, connect, fatal, told
from forecaster.shell.kafka.rights import by_role, denied, needed
from forecaster.shell.kafka.settings import made_with, unfit
from forecaster.shell.kafka.spec import KafkaSpec, TopicsSpec


class Admin:
    """Creates and checks topics. Raises BrokerError when nobody answers or a right is missing."""

    def __init__(self, spec: KafkaSpec) -> None:
        self._spec = spec
        try:
            self._client: Any = connect(KafkaAdminClient, common_settings(spec))
        except KafkaError as error:
            raise self._ours(error) from error

    def describe(self, names: Iterable[str]) -> dict[str, int]:
        """The number of partitions of those topics that exist."""
        try:
            found = self._client.describe_topics()  # of all: asking for one by name may create it
        except KafkaError as error:
            raise self._ours(error) from error
        wanted = set(names)
        return {topic["name"]: len(topic["partitions"]) for topic in found if topic["name"] in wanted}

    def create_missing(self, topics: TopicsSpec) -> list[str]:
        """Create what is missing and wait until it can be used; returns the names that were created.

        The topics that go with the ticks get as many partitions as the ticks topic has. Harmless when
        somebody else creates the same at the same time.
        """
        there = self.describe(by_role(topics).values())
        wanted = _wanted(self._spec, topics, there)
        missing = {name: how for name, how in wanted.items() if name not in there}
        if not missing:
            return []
        try:
            answer = self._client.create_topics(missing, raise_errors=False)
            for topic in answer["topics"]:
                error = for_code(topic["error_code"])
                if topic["error_code"] and error is not TopicAlreadyExistsError:
                    why = topic["error_message"] or error.__name__
                    raise BrokerError(f"topic {topic['name']!r} cannot be created: {why}")
            self._client.wait_for_topics(list(missing), timeout_ms=round(self._spec.connect_timeout_s * 1000))
        except KafkaError as error:
            raise self._ours(error) from error
        return sorted(missing)

    def check(self, topics: TopicsSpec, *, created: bool = False) -> list[str]:
        """What is missing or cannot work, one sentence each, with the mend; `created`: what is missing will be."""
        there = self.describe(by_role(topics).values())
        problems = [
            f"topics.{role} = {name!r}: there is no such topic, or no right to {needed(role)}; create it (topics.create"
            " = true does), or allow it"
            for role, name in by_role(topics).items()
            if name not in there and not created
        ]
        ticks = there.get(topics.ticks)
        for role, name in (("state", topics.state), ("predictions", topics.predictions)):
            found = there.get(name)
            if ticks is not None and found is not None and found < ticks:
                problems.append(
                    f"topics.{role} = {name!r} has {found} partitions; the ticks topic has {ticks}"
                )
        if there.get(topics.models, 1) != 1:
            problems.append(f"topics.models = {topics.models!r} has several partitions; it has to have one")
        return problems

    def unfit(self, topics: TopicsSpec) -> list[str]:
        """Settings of topics with which records are lost or refused, one sentence each, with the mend."""
        return list(unfit(self._client, self._spec, topics))

    def denied(self, topics: TopicsSpec) -> dict[str, str]:
        """Rights that a worker lacks on topics that it may see, on its group and its identity: a sentence by key."""
        try:
            return dict(denied(self._client, self._spec, topics))
        except KafkaError as error:
            raise self._ours(error) from error

    def close(self) -> None:
        """End the client. Never raises."""
        try:
            self._client.close()
        except KafkaError:
            return

    def _ours(self, error: KafkaError) -> Exception:
        text = f"no answer from {self._spec.bootstrap_servers}: {told(error)}"
        return fatal(error) or BrokerError(text)


def _wanted(spec: KafkaSpec, topics: TopicsSpec, there: dict[str, int]) -> dict[str, dict[str, Any]]:
    """How each topic is created: partitions, replicas and the settings that its use asks for."""
    with_ticks = there.get(topics.ticks, topics.create_partitions)
    return {
        name: {
            "num_partitions": with_ticks if role in ("ticks", "predictions", "state") else 1,
            "replication_factor": topics.create_replication,
            "configs": made_with(role, spec, topics),
        }
        for role, name in by_role(topics).items()
    }
