"""The daemon's door for operators: /metrics, /healthz, /readyz, /status and POST /retrain.

Requests come in, what the daemon's callables answer goes out. It all runs on one thread of its own, and the
callables only read figures or leave a request for the loop to find, so nobody outside can hold up a tick. A
connection carries one request, has a deadline for all of it, and gives way to a newer one when there are too
many: slow or hostile clients cost a bounded number of descriptors and nothing else.
"""

import asyncio
import errno
import hmac
import socket
import threading
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from time import monotonic

import orjson
import uvicorn
from prometheus_client import CONTENT_TYPE_LATEST, CollectorRegistry, generate_latest
from pydantic import Field, SecretStr, model_validator
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route
from uvicorn.protocols.http.h11_impl import H11Protocol

from forecaster.core.spec import Spec
from forecaster.errors import BugError, BusyError, ConfigError

STOP_S = 2.0
"""How long to wait for open answers at the end."""


class HttpSpec(Spec):
    """Where the door is and how much may be asked of it."""

    enabled: bool = Field(
        default=True, description="Serve /metrics, /healthz, /readyz, /status and /retrain."
    )
    host: str = Field(default="127.0.0.1", min_length=1, description="Address to listen on.")
    port: int = Field(default=9464, ge=0, le=65535, description="Port to listen on; 0 takes any free one.")
    token: SecretStr | None = Field(
        default=None, description="Secret that POST /retrain asks for; without one it is refused."
    )
    token_file: Path | None = Field(default=None, description="File that holds the secret instead.")
    max_connections: int = Field(
        default=32, ge=1, le=1024, description="Open connections; a further one displaces the oldest."
    )
    timeout_s: float = Field(
        default=10.0,
        gt=0,
        le=300,
        description="Time for a whole request and its answer, then the connection ends.",
    )
    max_header_bytes: int = Field(default=16_384, ge=1_024, description="Largest request line with headers.")
    metrics_max_age_s: float = Field(
        default=0.2, ge=0, le=60, description="A scrape this soon after another gets the same answer."
    )

    @model_validator(mode="after")
    def _one_token(self) -> "HttpSpec":
        if self.token is not None and self.token_file is not None:
            raise ValueError("token and token_file exclude each other: keep the file")
        return self


@dataclass(frozen=True)
class Hooks:
    """What the daemon answers with. All are called on the HTTP thread and must return at once.

    `health` has "ok" (the loop is turning), `ready` has "ready" and "missing" (a list of what is not there
    yet); whatever else they hold is shown. `request_retrain(sender)` leaves a request and returns its id.
    """

    health: Callable[[], Mapping[str, object]]
    ready: Callable[[], Mapping[str, object]]
    status: Callable[[], Mapping[str, object]]
    request_retrain: Callable[[str], str]


class HttpServer:
    """The server and its thread; `port` is the one it really listens on."""

    def __init__(self, spec: HttpSpec, registry: CollectorRegistry, hooks: Hooks) -> None:
        """Bind the address. Raises BusyError while another has it, ConfigError where it or the token cannot be had."""
        app = _Application(registry, hooks, _token(spec), spec.metrics_max_age_s)
        self._socket = _bind(spec)
        self.port: int = self._socket.getsockname()[1]
        self._server = uvicorn.Server(
            uvicorn.Config(
                app.routes(),
                http=_bounded_protocol(spec.max_connections, spec.timeout_s),
                h11_max_incomplete_event_size=spec.max_header_bytes,
                loop="asyncio",
                ws="none",
                lifespan="off",
                headers=[("Connection", "close"), ("Cache-Control", "no-store")],
                server_header=False,
                proxy_headers=False,
                access_log=False,
                log_config=None,
                log_level="error",  # what strangers send is no news
                timeout_graceful_shutdown=1,
            )
        )
        self._thread = threading.Thread(target=self._run, name="http", daemon=True)

    def start(self) -> None:
        """Answer from now on."""
        self._thread.start()

    def close(self) -> None:
        """Stop answering; returns within about two seconds whatever the clients do."""
        self._server.should_exit = True
        if self._thread.ident is not None:
            self._thread.join(STOP_S)
        self._socket.close()

    def _run(self) -> None:
        self._server.run(sockets=[self._socket])


class _Application:
    """The routes over the daemon's hooks."""

    def __init__(
        self, registry: CollectorRegistry, hooks: Hooks, token: bytes | None, metrics_max_age_s: float
    ) -> None:
        self._registry = registry
        self._hooks = hooks
        self._token = token
        self._max_age_s = metrics_max_age_s
        self._rendered = b""
        self._rendered_at = -float("inf")

    def routes(self) -> Starlette:
        return Starlette(
            routes=[
                Route("/metrics", self.metrics),
                Route("/healthz", self.healthz),
                Route("/readyz", self.readyz),
                Route("/status", self.status),
                Route("/retrain", self.retrain, methods=["POST"]),
            ]
        )

    async def metrics(self, _: Request) -> Response:
        """Rendering holds the interpreter for milliseconds, so a flood of scrapes shares one."""
        if monotonic() - self._rendered_at > self._max_age_s:
            self._rendered, self._rendered_at = generate_latest(self._registry), monotonic()
        return Response(self._rendered, media_type=CONTENT_TYPE_LATEST)

    async def healthz(self, _: Request) -> Response:
        report = self._hooks.health()
        return _json(report, 200 if report["ok"] else 503)

    async def readyz(self, _: Request) -> Response:
        report = self._hooks.ready()
        return _json(report, 200 if report["ready"] else 503)

    async def status(self, _: Request) -> Response:
        return _json(self._hooks.status())

    async def retrain(self, request: Request) -> Response:
        """The token is compared in constant time; a body, if any, is not read."""
        if self._token is None:
            return _json({"error": "set http.token or http.token_file to allow this"}, 403)
        given = request.headers.get("authorization", "").encode("latin-1")
        if not hmac.compare_digest(given, b"Bearer " + self._token):
            return _json({"error": "wrong or missing token"}, 401, {"WWW-Authenticate": "Bearer"})
        sender = f"http:{request.client.host}" if request.client else "http"
        return _json({"id": self._hooks.request_retrain(sender)}, 202)


def _bounded_protocol(max_connections: int, timeout_s: float) -> type[H11Protocol]:
    """HTTP/1.1 with what uvicorn leaves open: a deadline for the headers and for slow readers, and a cap on
    connections that favours new ones, so that idle ones cannot keep a probe out.
    """

    class Bounded(H11Protocol):
        def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
            if len(self._open) >= max_connections:
                oldest = next(iter(self._open))
                del self._open[oldest]
                oldest.abort()
            self._open[transport] = None
            super().connection_made(transport)
            self._deadline = self.loop.call_later(timeout_s, transport.abort)

        def connection_lost(self, exc: Exception | None) -> None:
            self._deadline.cancel()
            self._open.pop(self.transport, None)
            super().connection_lost(exc)

        _open: dict[asyncio.Transport, None] = {}  # noqa: RUF012  (shared on purpose: the open ones, oldest first)
        _deadline: asyncio.TimerHandle

    return Bounded


def _bind(spec: HttpSpec) -> socket.socket:
    family = socket.AF_INET6 if ":" in spec.host else socket.AF_INET
    try:
        return socket.create_server((spec.host, spec.port), family=family, backlog=128)
    except OSError as error:
        busy = error.errno in {errno.EADDRINUSE, errno.EADDRNOTAVAIL}
        raise (BusyError if busy else ConfigError)(
            f"http.host = {spec.host!r}, http.port = {spec.port}: cannot listen there "
            f"({error.strerror or error}). Choose another, stop what uses it, or set http.enabled = false."
        ) from error


def _token(spec: HttpSpec) -> bytes | None:
    if spec.token_file is None:
        return spec.token.get_secret_value().encode() if spec.token else None
    try:
        token = spec.token_file.read_bytes().strip()
    except OSError as error:
        raise ConfigError(f"http.token_file = {str(spec.token_file)!r}: {error.strerror or error}") from error
    if not token:
        raise ConfigError(f"http.token_file = {str(spec.token_file)!r}: the file is empty")
    return token


def _json(
    report: Mapping[str, object], status: int = 200, headers: Mapping[str, str] | None = None
) -> Response:
    try:
        body = orjson.dumps(dict(report), option=orjson.OPT_SERIALIZE_NUMPY | orjson.OPT_NON_STR_KEYS)
    except TypeError as error:
        raise BugError(f"a report for HTTP holds what JSON cannot: {error}") from error
    return Response(body, status, headers, media_type="application/json")
