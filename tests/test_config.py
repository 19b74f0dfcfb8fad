"""The configuration: one file and the environment, every problem at once, no secret shown."""

import tomllib
from pathlib import Path
from typing import Any

import pytest

from forecaster import config
from forecaster.config import Config, load
from forecaster.errors import ConfigError


def write(folder: Path, text: str) -> Path:
    path = folder / "forecaster.toml"
    path.write_text(text, encoding="utf-8")
    return path


def problems(path: Path | None, environ: dict[str, str] | None = None) -> list[str]:
    with pytest.raises(ConfigError) as caught:
        load(path, environ or {})
    return str(caught.value).splitlines()


def test_no_file_and_no_environment_is_the_default() -> None:
    assert load(None, {"PATH": "/bin", "FORECASTER_TEST_KAFKA": "host:1"}) == Config()


def test_the_printed_default_reads_back_as_the_default(tmp_path: Path) -> None:
    text = config.to_toml()
    assert load(write(tmp_path, text), {}) == Config()
    tables = tomllib.loads(text)
    assert list(tables) == list(config.sections())
    for key in config.every_key():
        assert key.name in tables[key.section] or f"# {key.name} =" in text


def test_a_changed_configuration_reads_back_too(tmp_path: Path) -> None:
    text = """
        [kafka]
        start = "time"
        start_time = 2024-01-01T00:00:00Z
        ssl_cafile = "/etc/ca \\"x\\".pem"
        [tick]
        covariates = ["a", "b"]
        maximum = 1.5e29
        numeric_strings = true
    """
    changed = load(write(tmp_path, text), {})
    assert changed.kafka.start_time is not None
    assert load(write(tmp_path, config.to_toml(changed)), {}) == changed


def test_the_environment_goes_over_the_file(tmp_path: Path) -> None:
    path = write(tmp_path, '[kafka]\ngroup_id = "file"\nclient_id = "file"\n[model]\nhidden = 8\n')
    found = load(
        path,
        {
            "FORECASTER_KAFKA__GROUP_ID": "environment",
            "FORECASTER_MODEL__LEVELS": "[0.1, 0.5]",
            "FORECASTER_TICK__COVARIATES": "a, b",
            "FORECASTER_TICK__NUMERIC_STRINGS": "true",
            "FORECASTER_TRAINING__SEED": "7",
        },
    )
    assert (found.kafka.group_id, found.kafka.client_id, found.model.hidden) == ("environment", "file", 8)
    assert found.model.levels == (0.1, 0.5)
    assert found.tick.covariates == found.network.covariates == ("a", "b")
    assert found.tick.numeric_strings
    assert found.training.seed == 7


def test_a_variable_with_too_few_underscores_is_a_problem_and_not_ignored(tmp_path: Path) -> None:
    path = write(tmp_path, "[model]\nhorizon = 0\n")
    meant = {
        "FORECASTER_KAFKA_BOOTSTRAP_SERVERS": "FORECASTER_KAFKA__BOOTSTRAP_SERVERS",
        "FORECASTER_KAFKA_SASL_PLAIN_PASWORD": "FORECASTER_KAFKA__SASL_PLAIN_PASSWORD",
        "FORECASTER_LOG_NOISE": "FORECASTER_LOG__NOISE",
    }
    head, *lines = problems(path, dict.fromkeys(meant, "hunter2"))
    assert head == f"{path}: 4 problems"
    assert lines[:3] == [
        f"  {name}: two underscores part section and key; did you mean {mend}?"
        for name, mend in meant.items()
    ]


def test_variables_that_only_begin_like_ours_are_left_alone() -> None:
    others = {
        "FORECASTER_CONFIG": "x",
        "FORECASTER_ROLE": "train",
        "FORECASTER_TEST_KAFKA": "x",
        "FORECASTER_LOG": "x",
        "FORECASTER_KAFKA_SERVICE_HOST": "10.0.0.1",  # these tell of the service forecaster-kafka in Kubernetes
        "FORECASTER_KAFKA_SERVICE_PORT_PLAIN": "9092",
        "FORECASTER_KAFKA_PORT": "tcp://10.0.0.1:9092",
        "FORECASTER_KAFKA_PORT_9092_TCP_ADDR": "10.0.0.1",
    }
    assert load(None, others) == Config()


def test_every_problem_is_listed_with_key_value_and_mend(tmp_path: Path) -> None:
    path = write(
        tmp_path,
        """
        [modle]
        hidden = 3
        [model]
        hiden = 3
        cell = "grru"
        horizon = 0
        [kafka]
        horizon = 3
        [topics]
        ticks = "my ticks"
        """,
    )
    head, *lines = problems(path, {"FORECASTER_HTTP__PORT": "many"})
    assert head == f"{path}: 7 problems"
    assert {line.strip() for line in lines} == {
        "[modle]: there is no such section; did you mean model?",
        "model.hiden: there is no such key; did you mean model.hidden?",
        "model.cell = 'grru': should be 'gru', 'lstm' or 'rnn'; did you mean gru?",
        "model.horizon = 0: should be greater than or equal to 1",
        "kafka.horizon: there is no such key; did you mean model.horizon?",
        (
            "topics.ticks = 'my ticks': should be 1 to 249 letters, digits and any of . _ -, as names in Kafka"
            " are"
        ),
        (
            "http.port = 'many' (from FORECASTER_HTTP__PORT): should be a valid integer, unable to parse"
            " string as an integer"
        ),
    }


def test_sections_that_contradict_themselves_or_each_other_are_named(tmp_path: Path) -> None:
    path = write(tmp_path, '[tick]\nsame_time = "sequence"\n[kafka]\nstart = "time"\n')
    assert problems(path)[1:] == [
        '  [kafka]: start = "time" needs start_time',
        '  [tick]: same_time = "sequence" needs the name of a sequence field; set sequence',
    ]
    path = write(tmp_path, '[topics]\nticks = "predictions"\n[series]\nidle_s = 5\n[grid]\ninterval_s = 60\n')
    _, first, second = problems(path)
    assert "'predictions' is used twice" in first
    assert "series.idle_s = 5" in second
    (problem,) = problems(write(tmp_path, "[kafka]\nstall_s = 2\n"))[1:]
    assert problem.startswith("  [kafka]: stall_s = 2 has to be at least 6, two heartbeats")
    assert problem.endswith("raise it")
    assert load(write(tmp_path, "[kafka]\nstall_s = 2\nsession_timeout_s = 3\n"), {}).kafka.heartbeat_s == 1
    path = write(tmp_path, "[kafka]\nmax_message_bytes = 2000\n")
    assert "kafka.max_message_bytes = 2000: has to be at least" in problems(path)[1]


def test_numbers_that_nothing_could_be_done_with_are_problems(tmp_path: Path) -> None:
    path = write(
        tmp_path,
        """
        [kafka]
        session_timeout_s = inf
        [tick]
        future_s = nan
        [grid]
        interval_s = 1e-300
        """,
    )
    assert [line.strip() for line in problems(path)[1:]] == [
        "kafka.session_timeout_s = inf: should be a finite number",
        "tick.future_s = nan: should be a finite number",
        "grid.interval_s = 1e-300: should be 0 or at least 0.001",
    ]
    for bound in ("minimum = -1e39", "maximum = 1e300"):
        (problem,) = problems(write(tmp_path, f"[tick]\n{bound}\n"))[1:]
        assert problem.endswith("have to lie from -1e+30 to 1e+30")


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("kafka = 1", "[kafka]: is a section; write [kafka] on a line of its own and its keys below"),
        ("group_id = 1", "[group_id]: there is no such section; did you mean [kafka] group_id?"),
    ],
)
def test_keys_outside_of_a_section(tmp_path: Path, text: str, problem: str) -> None:
    assert problems(write(tmp_path, text))[1].strip() == problem


def test_files_that_cannot_be_read_say_why(tmp_path: Path) -> None:
    assert "make one with: forecaster config >" in problems(tmp_path / "none.toml")[0]
    assert "is not TOML" in problems(write(tmp_path, "[kafka"))[0]
    assert "line 2" in problems(write(tmp_path, "[kafka]\nx = = 2"))[0]
    assert "cannot be read" in problems(tmp_path)[0]


def test_secrets_are_never_shown(tmp_path: Path) -> None:
    text = """
        [kafka]
        security_protocol = "SASL_SSL"
        sasl_mechanism = "PLAIN"
        sasl_plain_username = "me"
        sasl_plain_password = "hunter2"
        ssl_password = "hunter2"
        [http]
        token = "hunter2"
    """
    found = load(write(tmp_path, text), {})
    assert found.kafka.sasl_plain_password is not None
    assert found.kafka.sasl_plain_password.get_secret_value() == "hunter2"
    for shown in (repr(found), str(config.shown(found)), config.to_toml(found), found.model_dump_json()):
        assert "hunter2" not in shown
    assert config.shown(found)["kafka"]["sasl_plain_username"] == "me"
    broken = (
        '[kafka]\nsasl_plain_passwrod = "hunter2"\nsasl_plain_password = ["hunter2"]\n[http]\ntoken = 3\n'
    )
    lines = problems(write(tmp_path, broken), {"FORECASTER_KAFKA__SSL_PASWORD": "hunter2"})
    assert len(lines) == 5
    assert "hunter2" not in str(lines)


def test_what_may_change_while_running_is_taken_over_and_the_rest_named() -> None:
    def configured(**tables: dict[str, Any]) -> Config:
        return Config.model_validate(tables)

    running = configured(log={"level": "info"}, kafka={"group_id": "a"})
    wanted = configured(log={"level": "debug"}, kafka={"group_id": "b"}, training={"seed": 5})
    change = config.change(running, wanted)
    assert set(change.taken) == {"log.level", "training.seed"}
    assert change.refused == ("kafka.group_id",)
    assert (change.config.log.level, change.config.training.seed) == ("debug", 5)
    assert change.config.kafka.group_id == "a"
    assert config.change(running, running) == (running, (), ())


def test_every_live_key_exists_and_every_key_is_described() -> None:
    there = {key.dotted for key in config.every_key()} | set(config.sections())
    assert set(config.LIVE) <= there
    assert [key.dotted for key in config.every_key() if not key.field.description] == []


def test_a_configuration_is_frozen_and_hashable() -> None:
    assert hash(Config()) == hash(Config())
    with pytest.raises(ValueError, match="frozen"):
        Config().kafka.group_id = "x"  # type: ignore[misc]
