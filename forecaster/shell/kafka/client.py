"""A spec -> the client library's keywords; the library's errors -> ours.

Every consumer, producer and admin client of the package is made with the keywords of this file, so that
security, timeouts and limits are decided once.
"""

from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

from kafka import KafkaProducer
from kafka.coordinator.assignors.cooperative_sticky import CooperativeStickyAssignor
from kafka.errors import (
    AuthorizationError,
    FencedInstanceIdError,
    KafkaConfigurationError,
    KafkaError,
    KafkaTimeoutError,
    ProducerFencedError,
)
from kafka.net.compat import KafkaNetClient
from kafka.net.sasl.oauth import AbstractTokenProvider

from forecaster.errors import ConfigError, FencedError, ForecasterError, RefusedError
from forecaster.shell.kafka.login import REFUSALS, make_client
from forecaster.shell.kafka.spec import KafkaSpec
from forecaster.shell.kafka.tls import SecurityError

Settings = dict[str, Any]
Client = TypeVar("Client")

_BEYOND_LIMIT = {
    "InvalidSessionTimeoutError": "kafka.session_timeout_s has to be between the broker's group.min.session.timeout.ms"
    " and group.max.session.timeout.ms",
    "InvalidTransactionTimeoutError": "kafka.transaction_timeout_s may not be above the broker's"
    " transaction.max.timeout.ms",
}
"""By name: the library may raise something else, which has it in its text."""

_PASSED_BY_NAME = (
    "client_id",
    "security_protocol",
    "sasl_mechanism",
    "sasl_plain_username",
    "sasl_kerberos_name",
    "sasl_kerberos_service_name",
    "sasl_kerberos_domain_name",
    "ssl_check_hostname",
    "ssl_cafile",
    "ssl_certfile",
    "ssl_keyfile",
    "ssl_crlfile",
    "ssl_ciphers",
)


class TokenFile(AbstractTokenProvider):
    """An OAUTHBEARER token that somebody else renews in a file; read at each connection."""

    def __init__(self, path: Path) -> None:
        super().__init__()
        self._path = path

    def token(self) -> str:
        """The token as it is in the file now."""
        return self._path.read_text(encoding="utf-8").strip()


def common_settings(spec: KafkaSpec) -> Settings:
    """Keywords that consumers, producers and admin clients share. Reads the secret files."""
    settings: Settings = {
        "bootstrap_servers": [server.strip() for server in spec.bootstrap_servers.split(",")],
        "request_timeout_ms": _ms(spec.request_timeout_s),
        "bootstrap_timeout_ms": _ms(spec.connect_timeout_s),
        "metadata_max_age_ms": _ms(spec.metadata_max_age_s),
        "reconnect_backoff_max_ms": 2_000,  # a broker that comes back is found within seconds
    }
    for name in _PASSED_BY_NAME:
        value = getattr(spec, name)
        if value is not None:
            settings[name] = str(value) if isinstance(value, Path) else value
    for name in ("sasl_plain_password", "ssl_password"):
        secret = _secret(spec, name)
        if secret is not None:
            settings[name] = secret
    if spec.sasl_oauth_token_file is not None:
        settings["sasl_oauth_token_provider"] = TokenFile(spec.sasl_oauth_token_file)
    return settings


def reader_settings(spec: KafkaSpec) -> Settings:
    """Keywords of a consumer: bounded fetches, committed records only, nothing created, nothing committed
    by itself.

    There are no deserializers: an exception inside the library's decoding would wedge the consumer.
    """
    return common_settings(spec) | {
        "metrics_enabled": False,  # we export our own
        "isolation_level": "read_committed",
        "enable_auto_commit": False,
        "allow_auto_create_topics": False,
        "max_poll_records": spec.max_poll_records,
        "fetch_max_wait_ms": _ms(spec.fetch_max_wait_s),
        "fetch_max_bytes": spec.fetch_bytes,
        "max_partition_fetch_bytes": spec.partition_fetch_bytes,
    }


def member_settings(spec: KafkaSpec) -> Settings:
    """Keywords of a member of the group. Cooperative from the first release: it cannot be mixed later."""
    return reader_settings(spec) | {
        "group_id": spec.group_id,
        "group_instance_id": spec.instance_id,
        "auto_offset_reset": "none",
        "partition_assignment_strategy": [CooperativeStickyAssignor],
        "session_timeout_ms": _ms(spec.session_timeout_s),
        "heartbeat_interval_ms": int(1000 * spec.heartbeat_s),  # down: the client warns above a third
        "max_poll_interval_ms": _ms(spec.max_poll_interval_s),
    }


def writer_settings(spec: KafkaSpec) -> Settings:
    """Keywords of a producer: idempotent, acknowledged by all, retried in order for the delivery timeout."""
    return common_settings(spec) | {
        "metrics_enabled": False,
        "acks": "all",
        "enable_idempotence": True,
        "allow_auto_create_topics": False,
        "compression_type": None if spec.compression == "none" else spec.compression,
        "linger_ms": _ms(spec.linger_s),
        "batch_size": spec.batch_bytes,
        "max_request_size": spec.max_message_bytes,
        "delivery_timeout_ms": _ms(spec.delivery_timeout_s),
        "max_block_ms": 5_000,
        "bootstrap_timeout_ms": min(5_000, _ms(spec.connect_timeout_s)),
        "retry_backoff_ms": 20,
    }


def connect(kind: Callable[..., Client], settings: Settings) -> Client:
    """A client of the library, which does not leave sockets and threads behind when nobody answers.

    When it gives up, its error is why the last connection ended. The ciphers are ours to set (see tls.py): not every
    kind knows them.
    """
    made: list[KafkaNetClient] = []
    ciphers = {"ssl_ciphers": settings.get("ssl_ciphers")}

    def make(**configuration: Any) -> KafkaNetClient:
        made.append(make_client(**configuration | ciphers))
        return made[-1]

    try:
        return kind(kafka_client=make, **{name: settings[name] for name in settings.keys() - ciphers.keys()})
    except BaseException as error:
        for client in made:
            client.close()
        trouble: Any = made[-1]._manager.trouble if made else None  # noqa: SLF001
        if isinstance(error, KafkaTimeoutError) and isinstance(trouble, KafkaError):
            raise trouble from error
        raise


def close_producer(producer: KafkaProducer, timeout_s: float) -> None:
    """Close without ever raising, and without leaving the sender thread behind.

    The library's own close raises when its flush times out, and its thread then runs for ever.
    """
    sender = producer._sender  # noqa: SLF001
    try:
        producer.close(timeout=timeout_s)
    except Exception:  # whatever it is, the thread has to end
        sender.force_close()
        producer._closed = True  # noqa: SLF001 - else the finalizer would try the same flush again
        producer._unregister_cleanup()  # noqa: SLF001
    sender.join(5.0)


def told(error: BaseException) -> str:
    """An error with its name in front, once: the library's own say theirs themselves. Its notes come behind it."""
    name, text = type(error).__name__, str(error).removesuffix(": None")
    if name not in text:
        text = f"{name}: {text}" if text else name
    return "; ".join((text, *getattr(error, "__notes__", ())))


def fatal(error: BaseException) -> ForecasterError | None:
    """Our error, if a retry cannot help: refused credentials or rights, a taken identity, wrong settings."""
    text = told(error)
    if isinstance(error, FencedInstanceIdError | ProducerFencedError):
        return FencedError(
            f"another instance uses this one's identity (instance_id or transactional_id): {text}"
        )
    if isinstance(error, SecurityError):
        return ConfigError(error.text) if error.ours else RefusedError(error.text)
    if isinstance(error, REFUSALS):
        return RefusedError(
            f"the broker refuses the credentials, see kafka.sasl_* and security_protocol: {text}"
        )
    if isinstance(error, AuthorizationError):
        return RefusedError(
            f"the broker denies a right that forecaster needs, see `forecaster check`: {text}"
        )
    wrong = next((why for name, why in _BEYOND_LIMIT.items() if name in text), None)
    if isinstance(error, KafkaConfigurationError):
        wrong = "the client refuses the [kafka] settings"
    return ConfigError(f"{wrong}: {text}") if wrong is not None else None


def _secret(spec: KafkaSpec, name: str) -> str | None:
    value, path = getattr(spec, name), getattr(spec, f"{name}_file")
    if path is not None:
        try:
            return path.read_text(encoding="utf-8").strip()
        except OSError as error:
            raise ConfigError(
                f"kafka.{name}_file = {str(path)!r} cannot be read: {error.strerror}"
            ) from error
    return value.get_secret_value() if value is not None else None


def _ms(seconds: float) -> int:
    return round(seconds * 1000)
