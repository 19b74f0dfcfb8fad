"""The command line without a broker: what it prints, what it exits with; and signals that come early."""

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import msgspec
import pytest

import forecaster
from forecaster import cli, config
from forecaster.shell.models import Entry, Models, Stored
from forecaster.shell.prediction import Encoder, decode
from tests.shell.test_prediction import LEVELS, forecasts

NO_BROKER = {"FORECASTER_KAFKA__BOOTSTRAP_SERVERS": "localhost:1", "FORECASTER_KAFKA__CONNECT_TIMEOUT_S": "1"}


class Ended:
    """What a command left behind."""

    def __init__(self, code: int, shown: str, said: str) -> None:
        self.code, self.shown, self.said = code, shown, said


@pytest.fixture
def call(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> "Call":
    return Call(monkeypatch, capsys)


class Call:
    """Runs a command in this process."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
        self._monkeypatch, self._capsys = monkeypatch, capsys

    def __call__(self, *arguments: str, **environ: str) -> Ended:
        for name, value in environ.items():
            self._monkeypatch.setenv(name, value)
        self._monkeypatch.setattr(sys, "argv", ["forecaster", *arguments])
        try:
            code = cli.main()
        except SystemExit as end:
            code = int(end.code or 0)
        captured = self._capsys.readouterr()
        return Ended(code, captured.out, captured.err)


def test_help_and_version_do_not_load_the_numeric_libraries() -> None:
    probe = """
import sys, forecaster
light = [m for m in ("jax", "kafka", "pydantic") if m in sys.modules]
import forecaster.cli
print(light, [m for m in ("jax", "kafka", "numpy") if m in sys.modules])
"""
    loaded = subprocess.run([sys.executable, "-c", probe], capture_output=True, text=True, check=True)
    assert loaded.stdout.split() == ["[]", "[]"]


def test_help_and_version(call: Call) -> None:
    help_ = call("--help")
    assert help_.code == 0
    for command in ("run", "config", "check", "tail", "retrain", "models"):
        assert command in help_.shown
    assert call("-h").shown == help_.shown
    assert "Usage: forecaster models list" in call("models", "list", "-h").shown
    assert call("--version").shown == f"forecaster {forecaster.__version__}\n"
    assert call("nonsense").code == 2


def test_public_names_are_all_there() -> None:
    assert forecaster.__all__ == sorted(forecaster.__all__)
    for name in forecaster.__all__:
        assert getattr(forecaster, name) is not None
    with pytest.raises(AttributeError, match="nonsense"):
        _ = forecaster.nonsense


def test_config_prints_the_default_and_a_file_with_everything_in_it(call: Call, tmp_path: Path) -> None:
    assert call("config", FORECASTER_KAFKA__CLIENT_ID="x").shown == config.to_toml()
    path = tmp_path / "forecaster.toml"
    path.write_text('[kafka]\ngroup_id = "mine"\n', encoding="utf-8")
    shown = call("config", "--config", str(path)).shown
    assert 'group_id = "mine"' in shown
    assert 'client_id = "x"' in shown
    assert "[metrics]" in shown


@pytest.mark.parametrize("command", ["run", "check", "retrain", "tail"])
def test_a_broken_configuration_ends_with_its_code_and_no_traceback(
    call: Call, command: str, tmp_path: Path
) -> None:
    path = tmp_path / "forecaster.toml"
    path.write_text("[model]\nhidden = 0\nhiden = 1\n", encoding="utf-8")
    ended = call(command, "--config", str(path))
    assert ended.code == 2
    assert "model.hidden = 0" in ended.said
    assert "did you mean model.hidden?" in ended.said


@pytest.mark.parametrize("command", [["retrain"], ["models", "list"], ["tail"]])
def test_without_a_broker_commands_say_so_and_end_with_its_code(call: Call, command: list[str]) -> None:
    ended = call(*command, **NO_BROKER)
    assert ended.code == 4
    assert "localhost:1" in ended.said


def test_check_lists_every_problem_at_once(call: Call, tmp_path: Path) -> None:
    wrong = {"FORECASTER_HTTP__TOKEN_FILE": str(tmp_path / "none"), "FORECASTER_HTTP__HOST": "192.0.2.1"}
    ended = call("check", **NO_BROKER, **wrong)
    assert ended.code == 2
    assert "3 problems" in ended.said
    for word in ("http.token_file = ", "http.host = '192.0.2.1'", "kafka.bootstrap_servers = 'localhost:1'"):
        assert word in ended.shown


def test_check_says_whom_it_asks_and_ends_with_the_code_of_a_broker_that_is_away(call: Call) -> None:
    ended = call("check", **NO_BROKER, FORECASTER_HTTP__PORT="0")
    assert (ended.code, ended.said.splitlines()[0]) == (4, "asking localhost:1")
    assert "1 problem, see above" in ended.said


def test_one_line_shows_the_first_and_the_last_step_with_the_80_percent_band() -> None:
    message = Encoder("ticks", LEVELS).encode(forecasts(), "m-1")[0]
    line = cli.predictions.prediction_line(decode(message))
    assert line == "2023-11-14 22:13:20Z  a  100  +1 100 [99, 101]  +2 100 [98, 102]  ok m-1"


def test_one_line_shows_as_many_digits_as_the_band_needs() -> None:
    made = decode(Encoder("ticks", LEVELS).encode(forecasts(), "m-1")[0])
    meter = tuple(tuple(12_345_600.0 + q / 100 for q in step) for step in made.quantiles)
    line = cli.predictions.prediction_line(msgspec.structs.replace(made, last=12_345_601.0, quantiles=meter))
    assert (
        "  a  12345601  +1 12345601 [12345600.99, 12345601.01]  +2 12345601 [12345600.98, 12345601.02]"
        in line
    )


def test_one_line_of_a_single_level_has_no_band() -> None:
    message = decode(Encoder("ticks", LEVELS).encode(forecasts(), "m-1")[0])
    medians = tuple((step[message.levels.index(0.5)],) for step in message.quantiles)
    line = cli.predictions.prediction_line(msgspec.structs.replace(message, levels=(0.5,), quantiles=medians))
    assert line == "2023-11-14 22:13:20Z  a  100  +1 100  +2 100  ok m-1"


def test_what_a_terminal_would_act_on_is_escaped() -> None:
    hostile = decode(Encoder("ticks", LEVELS).encode(forecasts(), "m\x9b2J")[0])
    named = msgspec.structs.replace(hostile, series="é \x1b[2J\n\u202e'\\", issued_at=1e15)
    line = cli.predictions.prediction_line(named)
    assert line.startswith("1000000000000000  é \\x1b[2J\\n\\u202e'\\  100")
    assert line.endswith("ok m\\x9b2J")
    assert line.isprintable()


def test_the_table_of_models_is_never_cut_and_can_be_had_as_json(
    call: Call, monkeypatch: pytest.MonkeyPatch
) -> None:
    versions = [f"20260101-00000{n}-{'abcdef01' * 4}" for n in range(3)]
    scores = {
        who: {"loss": loss} for who, loss in (("candidate", 0.5), ("serving", 0.625), ("last_value", 1.0))
    }
    cards = [{"parent": parent, "steps_taken": 400, "scores": scores} for parent in ("", *versions)]
    stored = [Stored(v, {}, card, b"") for v, card in zip(versions, cards, strict=False)]
    entries = [Entry(one, serving=n == 2) for n, one in enumerate(stored)]
    monkeypatch.setattr(Models, "versions", lambda _: entries)
    shown = call("models", "list", COLUMNS="40").shown
    lines = shown.splitlines()
    assert shown.count("0.5000, 0.6250, 1.0000") == 3
    assert "serving" in next(line for line in lines if line.startswith(f"│ {versions[2]}"))
    for n, version in enumerate(versions):
        assert sum(version in line for line in lines) == 1 + (n < 2), "its own line, and that of its child"
    told = [json.loads(line) for line in call("models", "list", "--json").shown.splitlines()]
    assert [one["version"] for one in told] == versions
    assert [one["serving"] for one in told] == [False, False, True]
    assert told[1]["card"]["parent"] == versions[0]


def test_who_asks_for_a_model_that_is_not_there_is_told_where_they_are_listed(
    call: Call, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Models, "fetch", lambda _, __: None)
    ended = call("models", "show", "v7")
    assert (ended.code, ended.shown) == (3, ""), "as a rollback to it ends"
    assert "there is no model 'v7': see forecaster models list" in ended.said


@pytest.mark.process
def test_signals_that_come_while_run_is_still_loading_do_not_end_it() -> None:
    process = subprocess.Popen(
        [sys.executable, "-X", "importtime", "-m", "forecaster", "run"],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
        env=os.environ | NO_BROKER,
    )
    assert process.stderr is not None
    with process, process.stderr as trace:
        try:
            next(line for line in trace if "typer.main" in line)  # the numeric libraries are yet to come
            for number in (signal.SIGUSR1, signal.SIGHUP, signal.SIGUSR2):
                process.send_signal(number)
            next(line for line in trace if line.rstrip().endswith(" jax"))
            assert process.poll() is None
            process.send_signal(signal.SIGTERM)
            next(line for line in trace if line.rstrip().endswith("forecaster.config"))
            process.send_signal(signal.SIGTERM)  # the second one ends it at once
            trace.read()
            assert process.wait(30) == 130
        finally:
            process.kill()
