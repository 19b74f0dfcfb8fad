"""One TOML file and the environment -> one checked, frozen Config, or one error that lists every problem.

Each section is the Spec of the stage that it configures; nothing here has knobs of its own. Goes out too: the
commented default file that `forecaster config` prints, and what of a new configuration may be taken over
while running. Secrets are masked wherever a configuration is shown. Nothing is read from anywhere after
`load` has returned, but for the files that `*_file` keys name.
"""

import json
import re
import tomllib
from collections.abc import Iterable, Iterator, Mapping
from datetime import datetime
from difflib import get_close_matches
from enum import Enum
from pathlib import Path
from typing import Any, NamedTuple, get_args, get_origin

from pydantic import Field, SecretStr, ValidationError
from pydantic.fields import FieldInfo

from forecaster.core.descent import TrainSpec
from forecaster.core.grid import GridSpec
from forecaster.core.model import ModelSpec, NetworkSpec
from forecaster.core.pages import PAGE_BYTES
from forecaster.core.promote import PromoteSpec
from forecaster.core.spec import Spec
from forecaster.core.table import SeriesSpec
from forecaster.core.tick import TickSpec
from forecaster.errors import ConfigError
from forecaster.shell.dead_letters import MOST_BYTES
from forecaster.shell.http import HttpSpec
from forecaster.shell.kafka.spec import KafkaSpec, TopicsSpec
from forecaster.shell.log import LogSpec
from forecaster.shell.metrics import MetricsSpec
from forecaster.shell.retrain import RetrainSpec
from forecaster.shell.state import StateSpec

ENV_PREFIX = "FORECASTER_"
MASK = "***"
NUMBER_BYTES = 25  # of the longest number in a prediction, with its comma
HEADER_BYTES = 4096  # for everything in a message but its body
LIVE = ("training", "log", "metrics")
"""Sections and keys that may change while running: none of them changes what a replay of the log would give.
"""

# What Kubernetes and Docker tell of a service that is called, say, forecaster-kafka.
_LINK = re.compile(r"_SERVICE_(HOST|PORT)|_PORT_\d+_")
_SECRET_WORDS = ("password", "secret", "token", "credential")


class TrainingSpec(RetrainSpec, TrainSpec, PromoteSpec):
    """When a new network is trained, on what, how, and what it has to show."""


class Config(Spec):
    """Everything that can be configured, a section for each stage."""

    kafka: KafkaSpec = Field(default_factory=lambda: KafkaSpec.model_validate({}))
    topics: TopicsSpec = Field(default_factory=lambda: TopicsSpec.model_validate({}))
    tick: TickSpec = Field(default_factory=lambda: TickSpec.model_validate({}))
    grid: GridSpec = Field(default_factory=lambda: GridSpec.model_validate({}))
    series: SeriesSpec = Field(default_factory=lambda: SeriesSpec.model_validate({}))
    state: StateSpec = Field(default_factory=lambda: StateSpec.model_validate({}))
    model: NetworkSpec = Field(default_factory=lambda: NetworkSpec.model_validate({}))
    training: TrainingSpec = Field(default_factory=lambda: TrainingSpec.model_validate({}))
    http: HttpSpec = Field(default_factory=lambda: HttpSpec.model_validate({}))
    log: LogSpec = Field(default_factory=lambda: LogSpec.model_validate({}))
    metrics: MetricsSpec = Field(default_factory=lambda: MetricsSpec.model_validate({}))

    @property
    def network(self) -> ModelSpec:
        """The network with the covariates that the ticks carry."""
        return ModelSpec.model_validate(dict(self.model) | {"covariates": self.tick.covariates})


class Key(NamedTuple):
    """One key of the configuration, as documentation and the default file show it."""

    section: str
    name: str
    field: FieldInfo

    @property
    def dotted(self) -> str:
        """As in `kafka.group_id`."""
        return f"{self.section}.{self.name}"

    @property
    def live(self) -> bool:
        """Whether it may change while running."""
        return self.section in LIVE or self.dotted in LIVE

    @property
    def secret(self) -> bool:
        """Whether its value must never be shown."""
        return SecretStr in get_args(self.field.annotation) or self.field.annotation is SecretStr


def sections() -> dict[str, type[Spec]]:
    """The sections in the order of the file."""
    return {
        name: field.annotation
        for name, field in Config.model_fields.items()
        if isinstance(field.annotation, type) and issubclass(field.annotation, Spec)
    }


def every_key() -> Iterator[Key]:
    """Every key, in the order of the file."""
    for section, spec in sections().items():
        for name, field in spec.model_fields.items():
            yield Key(section, name, field)


# --- reading ---


def load(path: Path | None, environ: Mapping[str, str]) -> Config:
    """The defaults, under the file at `path` (None: no file), under FORECASTER_<SECTION>__<KEY> of `environ`.

    Raises ConfigError with all problems, one a line: key, value, what is wrong or how to mend it.
    """
    tables = _read(path) if path is not None else {}
    origins: dict[tuple[str, ...], str] = {}
    for name, (section, key, value) in _environment(environ).items():
        table = tables.setdefault(section, {})
        if isinstance(table, dict):
            table[key] = value
            origins[section, key] = name
    problems = list(_ignored(environ))
    try:
        config = Config.model_validate(tables)
    except ValidationError as error:
        problems += [_problem(dict(e), origins) for e in error.errors()]
        raise _config_error(path, problems) from None
    if problems:
        raise _config_error(path, problems)
    if conflicts := [text for wrong, text in _conflicts(config) if wrong]:
        raise _config_error(path, conflicts)
    return config


def _read(path: Path) -> dict[str, Any]:
    try:
        return tomllib.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        mend = f"make one with: forecaster config > {path}"
        raise ConfigError(f"{path}: there is no such file; {mend}") from error
    except OSError as error:
        raise ConfigError(f"{path}: cannot be read: {error.strerror}") from error
    except ValueError as error:  # bad TOML, bad UTF-8
        raise ConfigError(f"{path}: is not TOML: {error}") from error


def _environment(environ: Mapping[str, str]) -> dict[str, tuple[str, str, Any]]:
    """The variables that are meant for us, those with a double underscore: name -> (section, key, value)."""
    lists = {key.dotted for key in every_key() if get_origin(key.field.annotation) is tuple}
    found: dict[str, tuple[str, str, Any]] = {}
    for name in sorted(environ):
        if not name.startswith(ENV_PREFIX) or "__" not in name:
            continue
        section, _, key = name.removeprefix(ENV_PREFIX).lower().partition("__")
        text = environ[name]
        found[name] = (section, key, _list(text) if f"{section}.{key}" in lists else text)
    return found


def _ignored(environ: Mapping[str, str]) -> Iterator[str]:
    """A problem for each variable that begins like those for us and has too few underscores to be one."""
    for name in sorted(environ):
        section, _, key = name.removeprefix(ENV_PREFIX).lower().partition("_")
        if not name.startswith(ENV_PREFIX) or "__" in name or not key or section not in sections():
            continue
        if _LINK.search(name) or environ[name].startswith(("tcp://", "udp://")):
            continue
        close = get_close_matches(key, sections()[section].model_fields, n=1, cutoff=0.6)
        meant = f"{ENV_PREFIX}{section}__{close[0] if close else key}".upper()
        yield f"{name}: two underscores part section and key; did you mean {meant}?"


def _list(text: str) -> Any:
    """A list as TOML writes it, or else words between commas."""
    try:
        return tomllib.loads(f"list = {text}")["list"]
    except tomllib.TOMLDecodeError:
        return [word.strip() for word in text.split(",") if word.strip()]


def _conflicts(config: Config) -> list[tuple[bool, str]]:
    """Values that are fine alone and wrong together: (whether it is so, the problem with its mend)."""
    grid, series = config.grid, config.series
    names = [name for role, name in config.topics.model_dump().items() if not role.startswith("create")]
    twice = sorted({name for name in names if names.count(name) > 1})
    topics_twice = f"topics: the name {', '.join(map(repr, twice))} is used twice; give each topic its own"
    idle_short = (
        f"series.idle_s = {series.idle_s:g}: a series would be dropped between two bars of grid.interval_s ="
        f" {grid.interval_s:g}; make it several times as long"
    )
    forecast_bytes = NUMBER_BYTES * config.model.horizon * (len(config.model.levels) + 2)
    room_bytes = max(2 * MOST_BYTES, forecast_bytes, PAGE_BYTES) + HEADER_BYTES
    message_small = (
        f"kafka.max_message_bytes = {config.kafka.max_message_bytes}: has to be at least {room_bytes},"
        f" for the longest dead letter, prediction or page"
    )
    return [
        (bool(twice), topics_twice),
        (0 < series.idle_s <= grid.interval_s, idle_short),
        (config.kafka.max_message_bytes < room_bytes, message_small),
    ]


# --- problems ---


def _config_error(path: Path | None, problems: Iterable[str]) -> ConfigError:
    listed = list(problems)
    where = f"{path}" if path is not None else "configuration"
    count = "1 problem" if len(listed) == 1 else f"{len(listed)} problems"
    return ConfigError("\n".join((f"{where}: {count}", *(f"  {problem}" for problem in listed))))


def _problem(error: dict[str, Any], origins: Mapping[tuple[str, ...], str]) -> str:
    """One line for one of pydantic's errors."""
    place = tuple(str(part) for part in error["loc"])
    section, key = place[0], place[1] if len(place) > 1 else ""
    shown = f"{section}.{key}" if key else f"[{section}]"
    known = key in sections()[section].model_fields if section in sections() else False
    if known and not isinstance(error["input"], dict):  # a misspelt key may hold a secret
        shown += f" = {_shown(key, error['input'])}"
    if name := origins.get(place[:2]):
        shown += f" (from {name})"
    return f"{shown}: {_mend(error, section, key)}"


def _mend(error: dict[str, Any], section: str, key: str) -> str:
    kind, message = error["type"], str(error["msg"])
    if kind == "extra_forbidden":
        if section not in sections():
            homes = [f"[{found.section}] {section}" for found in every_key() if found.name == section]
            return "there is no such section" + (
                f"; did you mean {homes[0]}?" if homes else _suggestion(section, sections())
            )
        there = sections()[section].model_fields
        elsewhere = [found.dotted for found in every_key() if found.name == key]
        return "there is no such key" + (
            f"; did you mean {elsewhere[0]}?" if elsewhere else _suggestion(key, there, section + ".")
        )
    if kind == "model_type" and not key:
        return f"is a section; write [{section}] on a line of its own and its keys below"
    if kind == "literal_error":
        expected = error["ctx"]["expected"]
        return f"should be {expected}" + _suggestion(str(error["input"]), expected.split("'")[1::2])
    if kind == "string_pattern_mismatch":
        return "should be 1 to 249 letters, digits and any of . _ -, as names in Kafka are"
    return message.removeprefix("Value error, ").removeprefix("Input ").removeprefix("String ")


def _suggestion(name: str, there: Iterable[str], prefix: str = "") -> str:
    close = get_close_matches(name, list(there), n=1, cutoff=0.6)
    return f"; did you mean {prefix}{close[0]}?" if close else ""


def _shown(key: str, value: object) -> str:
    if any(word in key.lower() for word in _SECRET_WORDS) and not key.endswith("_file"):
        return MASK
    text = repr(value)
    return text if len(text) <= 80 else text[:77] + "..."


# --- showing ---


def shown(config: Config) -> dict[str, dict[str, Any]]:
    """What differs from the defaults, by section, secrets masked: for the log and for comparisons by eye."""
    default = Config()
    tables: dict[str, dict[str, Any]] = {}
    for key in every_key():
        value = _value(config, key)
        if value != _value(default, key):
            table = tables.setdefault(key.section, {})
            table[key.name] = MASK if key.secret else _plain(value)
    return tables


def to_toml(config: Config | None = None) -> str:
    """A file that `load` reads back as `config` (but for secrets, which are left out), each key explained."""
    config = config or Config()
    lines = ["# Configuration of forecaster; every value that stands here is what it is without this file."]
    lines += [f"# Any key can be set from the environment too: {ENV_PREFIX}<SECTION>__<KEY>=value.", ""]
    for section, spec in sections().items():
        lines += [f"[{section}]", f"# {_first_line(spec)}", ""]
        for key in every_key():
            if key.section == section:
                lines += [f"# {line}" for line in wrapped(describe(key))]
                value = _value(config, key)
                known = value is not None and not key.secret
                lines += [f"{key.name} = {toml_value(value)}" if known else f"# {key.name} =", ""]
    return "\n".join(lines)


def describe(key: Key) -> str:
    """What a key means, and what it may be where its type does not say it."""
    text = (key.field.description or "").rstrip(".")
    return f"{text}. {limits(key)}".strip()


def limits(key: Key) -> str:
    """The bounds of a key in words, "" where there are none."""
    words = {"ge": "at least", "gt": "above", "le": "at most", "lt": "below"}
    bounds = [
        f"{word} {bound}"
        for name, word in words.items()
        for rule in key.field.metadata
        if (bound := getattr(rule, name, None)) is not None
    ]
    choices = _choices(key.field.annotation)
    if any(choice not in (key.field.description or "") for choice in choices):
        bounds.append(f"one of {', '.join(choices)}")
    return f"({', '.join(bounds)})" if bounds else ""


def _choices(annotation: Any) -> list[str]:
    arguments = get_args(annotation)
    if arguments and all(isinstance(argument, str) for argument in arguments):
        return list(arguments)
    return [choice for argument in arguments for choice in _choices(argument)] if arguments else []


def toml_value(value: Any) -> str:
    """A value as TOML writes it."""
    plain = _plain(value)
    if isinstance(plain, list):
        return f"[{', '.join(map(toml_value, plain))}]"  # pyright: ignore[reportUnknownArgumentType]
    if isinstance(plain, datetime):
        return plain.isoformat()
    if isinstance(plain, bool | str):
        return json.dumps(plain, ensure_ascii=False)
    return repr(plain)


def wrapped(text: str, width: int = 100) -> list[str]:
    """The text in lines of at most `width` characters."""
    lines = [""]
    for word in text.split():
        if lines[-1] and len(lines[-1]) + 1 + len(word) > width:
            lines.append(word)
        else:
            lines[-1] = f"{lines[-1]} {word}".lstrip()
    return lines


def _value(config: Config, key: Key) -> Any:
    return getattr(getattr(config, key.section), key.name)


def _plain(value: Any) -> Any:
    if isinstance(value, Path):
        return str(value)
    if isinstance(value, Enum):
        return value.value
    if isinstance(value, tuple):
        return [_plain(item) for item in value]  # pyright: ignore[reportUnknownVariableType]
    return value


def _first_line(spec: type[Spec]) -> str:
    return (spec.__doc__ or "").strip().splitlines()[0]


# --- changing while running ---


class Change(NamedTuple):
    """What a re-read configuration asks for. `config` is the running one with what may change taken over."""

    config: Config
    taken: tuple[str, ...]  # dotted keys
    refused: tuple[str, ...]  # dotted keys that need a restart


def change(running: Config, wanted: Config) -> Change:
    """Take over what may change while running; name the rest."""
    changed = [key for key in every_key() if _value(running, key) != _value(wanted, key)]
    tables = {section: getattr(running, section) for section in sections()}
    for key in changed:
        if key.live:
            update = {key.name: _value(wanted, key)}
            tables[key.section] = tables[key.section].model_copy(update=update)
    return Change(
        config=running.model_copy(update=tables),
        taken=tuple(key.dotted for key in changed if key.live),
        refused=tuple(key.dotted for key in changed if not key.live),
    )
