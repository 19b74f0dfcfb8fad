"""The HTTP server against real sockets: what it answers, and what slow and hostile clients cannot do."""

import errno
import json
import socket
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from pathlib import Path

import httpx
import psutil
import pytest
from prometheus_client import CollectorRegistry, Counter
from pydantic import SecretStr, ValidationError

from forecaster.errors import BusyError, ConfigError
from forecaster.shell.http import Hooks, HttpServer, HttpSpec

TOKEN = "open sesame"
NO_TLS = {"trust_env": False, "verify": False}  # reading the certificates takes longer than the request


def hooks(**changes: Callable[..., Mapping[str, object] | str]) -> Hooks:
    given = Hooks(
        health=lambda: {"ok": True, "age_s": 0.1},
        ready=lambda: {"ready": True, "missing": []},
        status=lambda: {"model": "v1"},
        request_retrain=lambda sender: f"id for {sender}",
    )
    return replace(given, **changes)


@contextmanager
def serving(spec: HttpSpec | None = None, given: Hooks | None = None) -> Iterator[int]:
    registry = CollectorRegistry()
    Counter("things", "Things.", registry=registry).inc(3)
    spec = spec or HttpSpec(port=0, token=SecretStr(TOKEN), metrics_max_age_s=0)
    server = HttpServer(spec, registry, given or hooks())
    server.start()
    try:
        yield server.port
    finally:
        server.close()
        assert not [thread for thread in threading.enumerate() if thread.name == "http"]


def get(port: int, path: str, **headers: str) -> httpx.Response:
    return httpx.get(f"http://127.0.0.1:{port}{path}", headers=headers, timeout=10, **NO_TLS)


def post(port: int, path: str, **headers: str) -> httpx.Response:
    return httpx.post(f"http://127.0.0.1:{port}{path}", headers=headers, timeout=10, **NO_TLS)


def connect(port: int) -> socket.socket:
    return socket.create_connection(("127.0.0.1", port), timeout=10)


def closed_by_server(client: socket.socket) -> bool:
    """Whether the server ends the connection; waits for it as long as the socket's own timeout."""
    try:
        while client.recv(65536):
            pass
    except ConnectionError:
        pass
    return True


def test_metrics_are_exposed_in_the_format_that_prometheus_reads() -> None:
    with serving() as port:
        answer = get(port, "/metrics")
    assert answer.status_code == 200
    assert answer.headers["content-type"].startswith("text/plain; version=")
    assert "things_total 3.0" in answer.text


def test_a_flood_of_scrapes_shares_one_rendering() -> None:
    rendered: list[None] = []

    class Counting:
        def collect(self) -> Iterator[None]:
            rendered.append(None)
            yield from ()

    registry = CollectorRegistry()
    registry.register(Counting())  # type: ignore[arg-type]
    rendered.clear()
    server = HttpServer(HttpSpec(port=0, metrics_max_age_s=60), registry, hooks())
    server.start()
    try:
        assert {get(server.port, "/metrics").status_code for _ in range(20)} == {200}
    finally:
        server.close()
    assert len(rendered) == 1


@pytest.mark.parametrize(("ok", "code"), [(True, 200), (False, 503)])
def test_health_says_whether_the_loop_turns(*, ok: bool, code: int) -> None:
    with serving(given=hooks(health=lambda: {"ok": ok, "age_s": 99.0})) as port:
        answer = get(port, "/healthz")
    assert (answer.status_code, answer.json()) == (code, {"ok": ok, "age_s": 99.0})


def test_readiness_names_what_is_missing() -> None:
    missing = {"ready": False, "missing": ["assigned", "rebuilt"]}
    with serving(given=hooks(ready=lambda: missing)) as port:
        answer = get(port, "/readyz")
    assert (answer.status_code, answer.json()) == (503, missing)


def test_status_is_shown_as_json() -> None:
    with serving() as port:
        assert get(port, "/status").json() == {"model": "v1"}


def test_a_retrain_is_requested_with_the_token_and_answered_with_its_id() -> None:
    with serving() as port:
        answer = post(port, "/retrain", authorization=f"Bearer {TOKEN}")
    assert (answer.status_code, answer.json()) == (202, {"id": "id for http:127.0.0.1"})


@pytest.mark.parametrize(
    "given", ["", "Bearer", "Bearer ", "Bearer open sesam", f"Basic {TOKEN}", TOKEN, "Bearer é"]
)
def test_a_wrong_token_requests_nothing(given: str) -> None:
    asked: list[str] = []

    def request(sender: str) -> str:
        asked.append(sender)
        return "never"

    with serving(given=hooks(request_retrain=request)) as port:
        raw = f"POST /retrain HTTP/1.1\r\nHost: x\r\nAuthorization: {given}\r\n\r\n".encode("latin-1")
        with connect(port) as client:
            client.sendall(raw)
            assert client.recv(65536).startswith(b"HTTP/1.1 401 ")
    assert not asked


def test_without_a_configured_token_nobody_may_retrain() -> None:
    with serving(HttpSpec(port=0)) as port:
        assert post(port, "/retrain", authorization="Bearer None").status_code == 403


def test_a_get_does_not_retrain_and_a_post_does_not_scrape() -> None:
    with serving() as port:
        assert get(port, "/retrain", authorization=f"Bearer {TOKEN}").status_code == 405
        assert post(port, "/metrics").status_code == 405
        assert get(port, "/").status_code == 404


def test_the_token_can_come_from_a_file(tmp_path: Path) -> None:
    file = tmp_path / "token"
    file.write_text(f"{TOKEN}\n")
    with serving(HttpSpec(port=0, token_file=file)) as port:
        assert post(port, "/retrain", authorization=f"Bearer {TOKEN}").status_code == 202


def test_a_token_file_that_is_empty_or_missing_is_named(tmp_path: Path) -> None:
    file = tmp_path / "token"
    for _ in range(2):
        with pytest.raises(ConfigError, match=r"http\.token_file = .*token"):
            HttpServer(HttpSpec(port=0, token_file=file), CollectorRegistry(), hooks())
        file.write_text(" \n")


def test_two_tokens_are_refused_and_none_is_printed() -> None:
    with pytest.raises(ValidationError, match="exclude each other") as refused:
        HttpSpec(token=SecretStr(TOKEN), token_file=Path("x"))
    assert TOKEN not in str(refused.value)


def test_a_port_in_use_may_be_free_a_moment_later() -> None:
    with serving() as port, pytest.raises(BusyError, match=rf"http\.port = {port}.*in use"):
        HttpServer(HttpSpec(port=port), CollectorRegistry(), hooks())


def test_a_port_that_is_never_ours_is_an_error_of_the_configuration(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object, **__: object) -> None:
        raise PermissionError(errno.EACCES, "Permission denied")

    monkeypatch.setattr("forecaster.shell.http.socket.create_server", refuse)
    with pytest.raises(ConfigError, match=r"http\.port = 80: .*Permission denied"):
        HttpServer(HttpSpec(port=80), CollectorRegistry(), hooks())


def test_a_broken_hook_costs_one_answer(caplog: pytest.LogCaptureFixture) -> None:
    def broken() -> Mapping[str, object]:
        raise RuntimeError("no status today")

    with serving(given=hooks(status=broken)) as port:
        assert get(port, "/status").status_code == 500
        assert get(port, "/healthz").status_code == 200


def test_two_hundred_clients_that_dribble_their_headers_keep_no_probe_out() -> None:
    spec = HttpSpec(port=0, max_connections=16, timeout_s=300)
    with serving(spec) as port, ExitStack() as stack:
        threads = threading.active_count()
        slow = [stack.enter_context(connect(port)) for _ in range(200)]
        for client in slow[-16:]:
            client.sendall(b"GET /healthz HTTP/1.1\r\nHost: x\r\nX-Slow: ")
        assert get(port, "/healthz").status_code == 200
        assert threading.active_count() == threads
        # The oldest gave way; the newest, apart from the one the probe displaced, may still take their time.
        assert all(closed_by_server(client) for client in slow[:184])
        slow[-1].sendall(b"done\r\n\r\n")
        assert slow[-1].recv(65536).startswith(b"HTTP/1.1 200 ")


@pytest.mark.parametrize(
    "sent", [b"", b"GET /metrics HTTP/1.1\r\nHost: ", b"POST /retrain HTTP/1.1\r\nContent-Length: 9\r\n"]
)
def test_a_request_that_never_ends_is_cut_off_at_its_deadline(sent: bytes) -> None:
    with serving(HttpSpec(port=0, timeout_s=0.2)) as port, connect(port) as client:
        client.sendall(sent)
        assert closed_by_server(client)


def test_a_client_that_does_not_read_is_cut_off_at_its_deadline() -> None:
    asked = threading.Event()

    def large() -> Mapping[str, object]:
        asked.set()
        return {"ready": True, "missing": ["x" * 50_000_000]}  # more than the kernel's buffers take

    with serving(HttpSpec(port=0, timeout_s=0.5), hooks(ready=large)) as port, connect(port) as client:
        client.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        client.sendall(b"GET /readyz HTTP/1.1\r\nHost: x\r\n\r\n")
        assert asked.wait(10)
        assert get(port, "/healthz").status_code == 200
        deadline = time.monotonic() + 10
        while held_by_server(port) and time.monotonic() < deadline:
            time.sleep(0.01)
        assert not held_by_server(port)


def held_by_server(port: int) -> bool:
    """Whether this process still has the serving end of a connection open."""
    connections = psutil.Process().net_connections("tcp")
    return any(c.laddr.port == port and c.status != psutil.CONN_LISTEN for c in connections)


def test_a_huge_request_line_is_refused_without_being_kept() -> None:
    with serving(HttpSpec(port=0, max_header_bytes=1024)) as port:
        with connect(port) as client:
            client.sendall(b"GET /" + b"a" * 4096)
            assert client.recv(65536).startswith(b"HTTP/1.1 400 ")
            assert closed_by_server(client)
        assert get(port, "/healthz").status_code == 200


@pytest.mark.parametrize(
    "noise", [b"\x16\x03\x01\x02\x00\x01\x00", b"\x00" * 64 + b"\r\n\r\n", b"GET\r\n\r\n"]
)
def test_what_is_not_http_is_refused(noise: bytes) -> None:
    with serving(HttpSpec(port=0, timeout_s=0.5)) as port:
        with connect(port) as client:
            client.sendall(noise)
            assert closed_by_server(client)
        assert get(port, "/healthz").status_code == 200


def test_a_body_is_not_read() -> None:
    with serving() as port, connect(port) as client:
        head = f"POST /retrain HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer {TOKEN}\r\n"
        client.sendall(head.encode() + b"Content-Length: 1000000000000\r\n\r\n")
        assert client.recv(65536).startswith(b"HTTP/1.1 202 ")
        assert closed_by_server(client)


def test_one_connection_carries_one_request() -> None:
    request = b"GET /healthz HTTP/1.1\r\nHost: x\r\n\r\n"
    with serving() as port, connect(port) as client:
        client.sendall(request * 3)
        answer = b""
        while part := client.recv(65536):
            answer += part
    assert answer.count(b"HTTP/1.1 200 OK") == 1
    assert json.loads(answer.partition(b"\r\n\r\n")[2]) == {"ok": True, "age_s": 0.1}


def test_closing_does_not_wait_for_a_client_that_stays() -> None:
    with serving(HttpSpec(port=0, timeout_s=300)) as port:
        client = connect(port)
        client.sendall(b"GET /healthz HTTP/1.1\r\n")
    with client:
        assert closed_by_server(client)


def test_closing_a_server_that_never_started_frees_its_port() -> None:
    server = HttpServer(HttpSpec(port=0), CollectorRegistry(), hooks())
    server.close()
    HttpServer(HttpSpec(port=server.port), CollectorRegistry(), hooks()).close()
