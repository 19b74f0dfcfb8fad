"""The specs refuse what cannot work, secrets stay secret, and nothing reaches the client that it does not know."""

import logging
import subprocess
import sys
from pathlib import Path

import pytest
from kafka import KafkaConsumer, KafkaProducer, TopicPartition
from kafka.admin import KafkaAdminClient
from kafka.errors import (
    FencedInstanceIdError,
    GroupAuthorizationFailedError,
    InvalidSessionTimeoutError,
    InvalidTransactionTimeoutError,
    KafkaError,
    KafkaTimeoutError,
    ProducerFencedError,
    SaslAuthenticationFailedError,
    TopicAuthorizationFailedError,
)
from pydantic import ValidationError

from forecaster.errors import ConfigError, FencedError, RefusedError
from forecaster.shell.kafka import KafkaSpec, TopicsSpec
from forecaster.shell.kafka.client import (
    TokenFile,
    common_settings,
    fatal,
    member_settings,
    reader_settings,
    told,
    writer_settings,
)
from forecaster.shell.kafka.progress import Progress
from forecaster.shell.kafka.tls import SecurityError
from forecaster.shell.kafka.transaction import transactional_settings
from forecaster.shell.kafka.unreadable import Gaps


def test_reading_the_configuration_does_not_import_the_client() -> None:
    code = "import sys, forecaster.shell.kafka; sys.exit('kafka' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


@pytest.mark.parametrize(
    ("settings", "mend"),
    [
        ({"start": "time"}, "start_time"),
        ({"ssl_keyfile": Path("client.key")}, "needs ssl_certfile"),
        ({"security_protocol": "SASL_SSL"}, "sasl_mechanism"),
        ({"delivery": "exactly_once"}, "instance_id or transactional_id"),
        ({"sasl_plain_password": "a", "sasl_plain_password_file": "b"}, "either"),
        ({"delivery_timeout_s": 5.0}, "request_timeout_s"),
        ({"start": "time", "start_time": "2026-01-01T00:00:00"}, "timezone"),
        ({"instance_id": "a b"}, "pattern"),
    ],
)
def test_settings_that_contradict_each_other_are_refused_with_the_mend(
    settings: dict[str, object], mend: str
) -> None:
    with pytest.raises(ValidationError, match=mend):
        KafkaSpec(**settings)  # type: ignore[arg-type]


@pytest.mark.parametrize("session_timeout_s", [1.0, 5.0, 6.0, 8.0, 30.0])
def test_a_heartbeat_is_never_above_a_third_of_the_session_of_which_the_client_warns(
    session_timeout_s: float,
) -> None:
    settings = member_settings(KafkaSpec(session_timeout_s=session_timeout_s))
    heartbeat_ms, session_ms = settings["heartbeat_interval_ms"], settings["session_timeout_ms"]
    assert isinstance(heartbeat_ms, int)
    assert isinstance(session_ms, int)
    assert 0 < 3 * heartbeat_ms <= session_ms


def test_the_client_knows_every_keyword() -> None:
    spec = KafkaSpec(
        instance_id="worker-1",
        security_protocol="SASL_SSL",
        sasl_mechanism="PLAIN",
        sasl_plain_username="user",
        sasl_plain_password="secret",  # type: ignore[arg-type]
        ssl_cafile=Path("ca.pem"),
        ssl_crlfile=Path("crl.pem"),
        ssl_ciphers="ECDHE",
    )
    assert set(member_settings(spec)) <= set(KafkaConsumer.DEFAULT_CONFIG)
    assert set(reader_settings(spec)) <= set(KafkaConsumer.DEFAULT_CONFIG)
    assert set(writer_settings(spec) | transactional_settings(spec, "worker-1")) <= set(
        KafkaProducer.DEFAULT_CONFIG
    )
    assert set(common_settings(spec)) - {"ssl_ciphers"} <= set(KafkaAdminClient.DEFAULT_CONFIG)


def test_secrets_come_from_files_and_are_not_shown(tmp_path: Path) -> None:
    (tmp_path / "password").write_text("s3cr3t\n")
    spec = KafkaSpec(sasl_plain_password_file=tmp_path / "password", ssl_password="k3y")  # type: ignore[arg-type]
    settings = common_settings(spec)
    assert settings["sasl_plain_password"] == "s3cr3t"
    assert settings["ssl_password"] == "k3y"
    assert "s3cr3t" not in repr(spec)
    assert "k3y" not in repr(spec)


def test_a_secret_file_that_is_missing_is_named() -> None:
    with pytest.raises(ConfigError, match=r"kafka\.sasl_plain_password_file = '/nowhere/password'"):
        common_settings(KafkaSpec(sasl_plain_password_file=Path("/nowhere/password")))


def test_a_token_is_read_again_at_each_connection(tmp_path: Path) -> None:
    (tmp_path / "token").write_text("old\n")
    provider = TokenFile(tmp_path / "token")
    assert provider.token() == "old"
    (tmp_path / "token").write_text("new\n")
    assert provider.token() == "new"


def test_requests_are_never_logged_since_they_show_passwords(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.DEBUG, logger="kafka.net.connection"):
        logging.getLogger("kafka.net.connection").debug("auth_bytes=%r", b"\0user\0s3cr3t")
        logging.getLogger("kafka.net.connection").info("connected")
    assert caplog.messages == ["connected"]


@pytest.mark.parametrize(
    ("error", "ours"),
    [
        (ProducerFencedError(), FencedError),
        (FencedInstanceIdError(), FencedError),
        (SaslAuthenticationFailedError("no"), RefusedError),
        (GroupAuthorizationFailedError("g"), RefusedError),
        (SecurityError("no"), RefusedError),
        (SecurityError("no", ours=True), ConfigError),
        (InvalidSessionTimeoutError(), ConfigError),
        (KafkaError(f"Unexpected error: {InvalidTransactionTimeoutError()}"), ConfigError),
    ],
)
def test_what_a_retry_cannot_mend_is_fatal(error: Exception, ours: type[Exception]) -> None:
    assert type(fatal(error)) is ours


def test_what_a_retry_may_mend_is_not_fatal() -> None:
    assert fatal(KafkaTimeoutError()) is None
    assert fatal(ValueError()) is None


def test_a_transaction_ends_before_the_broker_ends_it() -> None:
    spec = KafkaSpec(instance_id="a", delivery="exactly_once", transaction_timeout_s=20)
    settings = writer_settings(spec) | transactional_settings(spec, "worker-1")
    assert settings["transactional_id"] == "worker-1"
    assert (
        settings["request_timeout_ms"]
        <= settings["delivery_timeout_ms"]
        <= settings["transaction_timeout_ms"]
    )


def test_topics_have_names_of_their_own() -> None:
    topics = TopicsSpec()
    names = [
        topics.ticks,
        topics.predictions,
        topics.dead_letters,
        topics.control,
        topics.models,
        topics.state,
    ]
    assert len(set(names)) == 6


def test_a_partition_is_suspect_once_it_was_silent_for_the_stall_time() -> None:
    clock = [0.0]
    progress = Progress(60.0, lambda: clock[0])
    progress.restart({0, 1})
    clock[0] = 50.0
    progress.restart({1})
    assert progress.suspects({0, 1}) == []
    clock[0] = 70.0
    assert progress.suspects({0, 1}) == [0]
    assert not progress.due(), "it looks only now and then"
    clock[0] = 120.0
    assert progress.suspects({0, 1}) == [0, 1]
    progress.forget({0})
    clock[0] = 150.0
    assert progress.suspects({0, 1}) == [1], "a partition that is new has its time"


def test_what_cannot_be_decoded_is_tried_three_times_then_passed_over() -> None:
    asked: list[tuple[TopicPartition, int]] = []

    def find(partition: TopicPartition, offset: int) -> int:
        asked.append((partition, offset))
        return offset + 10

    gaps, place = Gaps(find), TopicPartition("ticks", 2)
    assert not gaps.failed(place, 5)
    assert not gaps.failed(place, 7)
    assert not gaps.failed(place, 5)
    assert gaps.after(place, 5) is None
    assert gaps.failed(place, 5)
    assert asked == [(place, 5)]
    assert gaps.after(place, 5) == 15
    assert gaps.after(place, 6) is None
    assert gaps.after(TopicPartition("ticks", 1), 5) is None


def test_a_second_stall_is_waited_for_longer() -> None:
    clock = [0.0]
    progress = Progress(60.0, lambda: clock[0])
    progress.restart({0})
    progress.be_patient()
    clock[0] = 90.0
    assert progress.suspects({0}) == []
    clock[0] = 130.0
    assert progress.suspects({0}) == [0]


@pytest.mark.parametrize(
    ("error", "text"),
    [
        (KafkaTimeoutError(), "KafkaTimeoutError"),
        (KafkaTimeoutError("no answer"), "KafkaTimeoutError: no answer"),
        (TopicAuthorizationFailedError("t"), "[Error 29] TopicAuthorizationFailedError: t"),
        (ValueError("v"), "ValueError: v"),
        (ValueError(), "ValueError"),
    ],
)
def test_an_error_is_told_with_its_name_once(error: Exception, text: str) -> None:
    assert told(error) == text
