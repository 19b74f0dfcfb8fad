"""How to reach the broker, and what the topics are called: the `[kafka]` and `[topics]` sections.

Comes in: configuration. Goes out: two frozen specs. The client library may not be imported here, so that
reading a configuration costs nothing; `client.py` turns a spec into the client's own keywords.
"""

from pathlib import Path
from typing import Literal, Self

from pydantic import AwareDatetime, Field, SecretStr, model_validator

from forecaster.core.spec import Spec

Compression = Literal["none", "gzip", "snappy", "lz4", "zstd"]

NAME = r"^[A-Za-z0-9._-]{1,249}$"  # what Kafka takes for one


class KafkaSpec(Spec):
    """The connection, the group, the delivery promise, and the limits that keep the heap bounded."""

    bootstrap_servers: str = Field(
        "localhost:9092", min_length=1, description="host:port of one or more brokers, separated by commas"
    )
    client_id: str = Field(
        "forecaster", min_length=1, description="name shown in the broker's logs and quotas"
    )
    group_id: str = Field(
        "forecaster", min_length=1, description="consumer group; workers of one group share the partitions"
    )
    instance_id: str | None = Field(
        None,
        pattern=NAME,
        description="static membership: stable and unique for each worker, so that a restart within "
        "session_timeout_s moves no partition",
    )
    start: Literal["earliest", "latest", "time"] = Field(
        "earliest", description="where to start in a partition without a committed offset"
    )
    start_time: AwareDatetime | None = Field(
        None, description='with start = "time": the first record at or after it, ISO 8601 with zone'
    )
    out_of_range: Literal["earliest", "latest", "stop"] = Field(
        "earliest",
        description="where to go on when retention has removed the committed offset; stop ends the process",
    )
    unreadable: Literal["skip", "stop"] = Field(
        "skip",
        description="what to do with a batch on the log that cannot be decoded (checksum, codec) after three tries; "
        "skip goes on behind it and counts its offsets, stop ends the process",
    )
    max_staleness_s: float = Field(
        0.0,
        ge=0,
        description="0: every tick is answered, however late; else ticks whose records are older are skipped, until "
        "the backlog is half as old: fresh forecasts rather than all of them; take several times what a restart takes",
    )
    delivery: Literal["at_least_once", "exactly_once"] = Field(
        "at_least_once",
        description="at_least_once repeats predictions (with the same source) after a crash; "
        "exactly_once writes predictions and offsets in one transaction",
    )
    transactional_id: str | None = Field(
        None,
        min_length=1,
        description="with exactly_once: stable and unique for each worker; "
        "made of group_id and instance_id when not given",
    )

    commit_interval_s: float = Field(
        1.0,
        ge=0,
        le=60,
        description="at most so many seconds of acknowledged work are repeated after a crash",
    )
    session_timeout_s: float = Field(
        30.0, ge=1, description="a worker silent for so long loses its partitions"
    )
    max_poll_interval_s: float = Field(
        120.0, ge=1, description="a batch that takes longer loses the partitions"
    )
    max_poll_records: int = Field(2000, ge=1, le=100_000, description="most ticks in one batch")
    fetch_max_wait_s: float = Field(
        0.1, ge=0, le=10, description="how long the broker may hold a fetch that has no data"
    )
    fetch_bytes: int = Field(
        8 << 20, ge=1 << 10, description="most bytes of one fetch; memory holds about two of them"
    )
    partition_fetch_bytes: int = Field(
        1 << 20, ge=1 << 10, description="most bytes of one partition in a fetch"
    )
    outstanding_messages: int = Field(
        20_000, ge=100, description="most messages sent and not yet acknowledged; beyond it no tick is read"
    )
    outstanding_bytes: int = Field(64 << 20, ge=1 << 20, description="the same limit in bytes")
    linger_s: float = Field(
        0.0, ge=0, le=1, description="wait for more messages before sending; 0 is best for latency"
    )
    batch_bytes: int = Field(256 << 10, ge=1 << 10, description="most bytes of one batch of messages")
    compression: Compression = Field(
        "none", description="codec for what is written: none, gzip, snappy, lz4 or zstd"
    )
    max_message_bytes: int = Field(
        1 << 20, ge=1 << 10, description="largest message written; the broker's limit must allow it"
    )
    request_timeout_s: float = Field(
        10.0, ge=1, description="an unanswered request is repeated after so long"
    )
    delivery_timeout_s: float = Field(
        120.0, ge=1, description="messages are repeated, in order, for so long before the batch is taken back"
    )
    transaction_timeout_s: float = Field(
        30.0, ge=1, description="with exactly_once: the broker aborts a transaction that is open for longer"
    )
    connect_timeout_s: float = Field(
        30.0, ge=1, description="how long to wait for the first contact with a broker"
    )
    metadata_max_age_s: float = Field(
        30.0, ge=1, description="new partitions and leaders are noticed within it"
    )
    stall_s: float = Field(
        60.0, ge=1, description="a partition that has lag and gives nothing for so long gets a new client"
    )
    give_up_s: float = Field(
        600.0,
        ge=30,
        description="when no broker answers for so long, or a partition that has lag does not advance, the process "
        "ends with exit code 6, so that its supervisor can act",
    )

    security_protocol: Literal["PLAINTEXT", "SSL", "SASL_PLAINTEXT", "SASL_SSL"] = Field(
        "PLAINTEXT", description="PLAINTEXT, SSL, SASL_PLAINTEXT or SASL_SSL"
    )
    sasl_mechanism: Literal["PLAIN", "GSSAPI", "OAUTHBEARER", "SCRAM-SHA-256", "SCRAM-SHA-512"] | None = (
        Field(None, description="PLAIN, GSSAPI, OAUTHBEARER, SCRAM-SHA-256 or SCRAM-SHA-512")
    )
    sasl_plain_username: str | None = Field(None, description="user for PLAIN and SCRAM")
    sasl_plain_password: SecretStr | None = Field(
        None, description="password for PLAIN and SCRAM; prefer the file"
    )
    sasl_plain_password_file: Path | None = Field(None, description="file that holds the password")
    sasl_kerberos_name: str | None = Field(None, description="GSSAPI name; overrides service and domain name")
    sasl_kerberos_service_name: str | None = Field(None, description="GSSAPI service name")
    sasl_kerberos_domain_name: str | None = Field(None, description="GSSAPI domain name")
    sasl_oauth_token_file: Path | None = Field(
        None, description="file that holds the OAUTHBEARER token; read again at each connection"
    )
    ssl_check_hostname: bool = Field(True, description="the certificate has to match the broker's name")
    ssl_cafile: Path | None = Field(None, description="certificates of the authorities to trust, PEM")
    ssl_certfile: Path | None = Field(None, description="client certificate, PEM")
    ssl_keyfile: Path | None = Field(None, description="key of the client certificate, PEM")
    ssl_password: SecretStr | None = Field(None, description="password of the key; prefer the file")
    ssl_password_file: Path | None = Field(None, description="file that holds the password of the key")
    ssl_crlfile: Path | None = Field(None, description="revoked certificates, PEM")
    ssl_ciphers: str | None = Field(None, description="ciphers, as OpenSSL writes them")

    @model_validator(mode="after")
    def _check(self) -> Self:
        problems = [text for wrong, text in self._conflicts() if wrong]
        if problems:
            raise ValueError("; ".join(problems))
        return self

    def _conflicts(self) -> list[tuple[bool, str]]:
        sasl = self.security_protocol.startswith("SASL")
        exactly_once = self.delivery == "exactly_once"
        return [
            (self.start == "time" and self.start_time is None, 'start = "time" needs start_time'),
            (sasl and self.sasl_mechanism is None, "security_protocol with SASL needs sasl_mechanism"),
            (
                bool(self.sasl_plain_password and self.sasl_plain_password_file),
                "give either sasl_plain_password or sasl_plain_password_file",
            ),
            (
                bool(self.ssl_password and self.ssl_password_file),
                "give either ssl_password or ssl_password_file",
            ),
            (
                self.ssl_keyfile is not None and self.ssl_certfile is None,
                "ssl_keyfile needs ssl_certfile, else no certificate is shown",
            ),
            (
                exactly_once and not (self.transactional_id or self.instance_id),
                "exactly_once needs instance_id or transactional_id, stable and unique for each worker",
            ),
            (
                exactly_once and self.transaction_timeout_s <= self.request_timeout_s,
                "transaction_timeout_s has to be longer than request_timeout_s",
            ),
            (
                self.stall_s < 2 * self.heartbeat_s,
                (
                    f"stall_s = {self.stall_s:g} has to be at least {2 * self.heartbeat_s:g}, two heartbeats (of a "
                    "third of session_timeout_s, 3 s at most), else a client that idles is thrown away for "
                    "ever; raise it"
                ),
            ),
            (
                self.give_up_s <= self.stall_s + self.max_poll_interval_s,
                "give_up_s has to be longer than stall_s + max_poll_interval_s",
            ),
            (
                self.delivery_timeout_s < self.request_timeout_s + self.linger_s,
                "delivery_timeout_s has to be at least request_timeout_s + linger_s",
            ),
        ]

    @property
    def heartbeat_s(self) -> float:
        """How often a member of the group shows that it is alive, and hears that the broker is."""
        return min(3.0, self.session_timeout_s / 3)

    @property
    def stable_transactional_id(self) -> str:
        """The producer's identity under exactly_once; the same after a restart, which fences the ghost."""
        return self.transactional_id or f"{self.group_id}.{self.instance_id}"


class TopicsSpec(Spec):
    """Names of the topics, and how those that are missing are made."""

    ticks: str = Field("ticks", pattern=NAME, description="input: ticks")
    predictions: str = Field("predictions", pattern=NAME, description="output: predictions")
    dead_letters: str = Field(
        "ticks.dead-letters", pattern=NAME, description="output: what could not be used, and why"
    )
    control: str = Field("forecaster.control", pattern=NAME, description="requests and their outcomes")
    models: str = Field("forecaster.models", pattern=NAME, description="models (compacted)")
    state: str = Field("forecaster.state", pattern=NAME, description="pages and events (compacted)")
    create: bool = Field(False, description="create the topics that are missing")
    create_partitions: int = Field(
        4, ge=1, le=10_000, description="partitions of created ticks and predictions topics"
    )
    create_replication: int = Field(
        -1, ge=-1, description="replicas of created topics; -1 is the broker's default"
    )
    create_retention_s: float = Field(
        7 * 86_400.0,
        ge=60,
        description="retention of created ticks, predictions, dead-letter and control topics",
    )
