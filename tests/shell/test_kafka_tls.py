"""Files of TLS that change under a process: read anew, and while they cannot be used, as they were before."""

import logging
from pathlib import Path
from typing import Any

import pytest

from forecaster.shell.kafka.tls import SecurityError, make_context
from tests.broker.certificates import Authority


@pytest.fixture
def settings(tmp_path: Path) -> dict[str, Any]:
    authority = Authority(tmp_path / "authority")
    certificate, key = authority.of_client("worker")
    names = {"ssl_cafile": authority.cafile, "ssl_certfile": certificate, "ssl_keyfile": key}
    return {name: str(path) for name, path in names.items()} | {
        "ssl_check_hostname": True,
        "ssl_password": None,
        "ssl_crlfile": None,
    }


@pytest.mark.parametrize("name", ["ssl_cafile", "ssl_certfile", "ssl_keyfile"])
@pytest.mark.parametrize("gone", [False, True])
def test_a_file_that_cannot_be_used_for_a_while_leaves_what_it_held_before(
    settings: dict[str, Any], name: str, gone: bool, caplog: pytest.LogCaptureFixture
) -> None:
    path = Path(settings[name])
    held, good = path.read_bytes(), make_context(settings)
    path.unlink() if gone else path.write_text("half a")
    caplog.set_level(logging.WARNING)
    assert make_context(settings) is good
    assert f"kafka.{name} = {str(path)!r} cannot be" in caplog.text
    assert "what the files held before is used" in caplog.text

    caplog.clear()
    path.write_bytes(held)
    assert make_context(settings) is not good
    assert not caplog.text


def test_who_is_trusted_since_then_is_trusted_all_the_same(settings: dict[str, Any], tmp_path: Path) -> None:
    good = make_context(settings)
    with Path(settings["ssl_cafile"]).open("ab") as both:
        both.write(Authority(tmp_path / "other").cafile.read_bytes())
    Path(settings["ssl_keyfile"]).write_text("half a")
    assert make_context(settings) is good
    assert len(good.get_ca_certs()) == 2


def test_files_that_never_could_be_used_are_refused(settings: dict[str, Any], tmp_path: Path) -> None:
    _, other = Authority(tmp_path / "other").of_client("other")
    with pytest.raises(SecurityError, match="key values mismatch") as refused:
        make_context(settings | {"ssl_keyfile": str(other)})
    assert refused.value.ours
