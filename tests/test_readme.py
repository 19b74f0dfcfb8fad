"""What the README names is there: files, links, commands; its code is Python and its messages are ticks."""

import ast
import re
from pathlib import Path

import pytest
from typer.main import get_command

from forecaster import cli
from forecaster.core.tick import Tick, TickSpec, make_decoder

ROOT = Path(__file__).parent.parent
README = (ROOT / "README.md").read_text(encoding="utf-8")


def blocks(language: str) -> list[str]:
    return re.findall(rf"```{language}\n(.*?)```", README, re.DOTALL)


@pytest.mark.parametrize("link", sorted(set(re.findall(r"\]\((?!http)([^)]+)\)", README))))
def test_links_lead_somewhere(link: str) -> None:
    assert (ROOT / link).exists()


def test_every_file_in_the_listing_exists() -> None:
    core, shell = (
        re.findall(r"^\| (`.*?) \|", part, re.MULTILINE) for part in re.split(r"`forecaster/shell/`", README)
    )
    for folder, lines in (("core", core), ("shell", shell)):
        names = [name for line in lines for name in re.findall(r"`([\w/]+(?:\.py)?)`", line)]
        assert names
        assert [name for name in names if not (ROOT / "forecaster" / folder / name).exists()] == []


def test_every_command_exists() -> None:
    root = get_command(cli.app)
    commands = root.commands  # type: ignore[attr-defined]
    for words in re.findall(r"^ {4}forecaster (.*)$", README, re.MULTILINE):
        name, *rest = words.split()
        command = commands[name]
        if hasattr(command, "commands"):
            command = command.commands[rest[0]]
        options = {option for parameter in command.params for option in parameter.opts}
        assert {word for word in rest if word.startswith("--")} <= options, words


def test_code_is_python() -> None:
    for code in blocks("python"):
        ast.parse(code)


def test_the_tick_is_a_tick() -> None:
    decode = make_decoder(TickSpec())
    for message in blocks("json"):
        assert isinstance(decode(None, message.encode(), 1_767_225_601_000), Tick)
