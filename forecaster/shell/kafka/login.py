"""Mends for the way in which the library connects and logs in.

A broker that refuses a password says so and closes the connection at once. The library throws away what
came just before the end of a connection, and what it learns while a connection ends; so it sees a lost
connection, and tries again for ever. Here both are kept, and the refusal is raised; so is one over TLS, by
either side (see tls.py). Below INFO the library logs settings and requests, bytes and all, with the password
in them; these loggers are cut off at INFO, and connections that end are logged without a traceback.
"""

import logging
import ssl
from typing import Any

from kafka.errors import (
    IllegalSaslStateError,
    KafkaConnectionError,
    KafkaTimeoutError,
    RequestTimedOutError,
    SaslAuthenticationFailedError,
    UnsupportedSaslMechanismError,
)
from kafka.net.compat import KafkaNetClient
from kafka.net.inet import create_connection
from kafka.net.manager import KafkaConnectionManager
from kafka.net.selector import NetworkSelector
from kafka.net.transport import KafkaSSLTransport

from forecaster.shell.kafka.tls import SecurityError, explained, make_context

REFUSALS = (SaslAuthenticationFailedError, UnsupportedSaslMechanismError, IllegalSaslStateError)
"""Errors that mean that credentials or the way to present them are refused."""
_OUT_OF_TIME = KafkaTimeoutError, RequestTimedOutError


class _NoPasswords(logging.Filter):
    """Only what is INFO or above."""

    def filter(self, record: logging.LogRecord) -> bool:
        return record.levelno >= logging.INFO


class _NoTracebacks(logging.Filter):
    """A line for each connection that ends."""

    def filter(self, record: logging.LogRecord) -> bool:
        if record.exc_info:
            record.msg, record.args = f"{record.getMessage()}: {record.exc_info[1]}", ()
            record.exc_info = None
        return True


logging.getLogger("kafka.net.transport").addFilter(_NoTracebacks())
for _name in ("kafka.net.connection", "kafka.protocol.parser", "kafka.admin.client"):
    logging.getLogger(_name).addFilter(_NoPasswords())


class Manager(KafkaConnectionManager):
    """Remembers a refusal by its broker; the library raises it when it is to connect there again."""

    def __init__(self, net: Any, **settings: Any) -> None:
        super().__init__(net, **settings)
        self.trouble: BaseException | None = None
        """Why the last connection that ended did so; that time ran out only where nothing else has ended one."""
        self._ciphers = settings.get("ssl_ciphers")

    async def _build_transport(self, node: Any, timeout_at: float | None = None) -> Any:
        build = self._over_tls if self.ssl_enabled else super()._build_transport
        transport: Any = await build(node, timeout_at)
        receive = transport._sock_recv  # noqa: SLF001

        def receive_all() -> tuple[bytes, Exception | None]:
            data, end = receive()
            return data, None if data else end  # the end is seen again by the next read

        transport._sock_recv = receive_all  # noqa: SLF001
        return transport

    async def _over_tls(self, node: Any, timeout_at: float | None) -> Any:
        """As the library's own, which waits for ever for a silent broker, and leaves sockets behind."""
        context = make_context(self.config | {"ssl_ciphers": self._ciphers})
        how = {"proxy_url": self.config["proxy_url"], "timeout_at": timeout_at}
        sock = await create_connection(self._net, node.host, node.port, self.config["socket_options"], **how)
        transport: Any = KafkaSSLTransport(self._net, sock, host=node.host, ssl_context=context)
        try:
            await self._shake_hands(transport._sock, timeout_at)  # noqa: SLF001
        except OSError as error:
            transport.close()
            raise KafkaConnectionError(error) from error
        except BaseException:
            transport.close()
            raise
        return transport

    async def _shake_hands(self, sock: ssl.SSLSocket, timeout_at: float | None) -> None:
        while True:
            try:
                sock.do_handshake()
                return
            except ssl.SSLWantReadError:
                await self._net.wait_read(sock, timeout_at)
            except ssl.SSLWantWriteError:
                await self._net.wait_write(sock, timeout_at)

    async def _connect(self, node: Any, conn: Any, **options: Any) -> None:
        refusals: list[Exception] = []
        log_in = conn._sasl_authenticate  # noqa: SLF001

        async def noting(timeout_at: float | None = None) -> None:
            try:
                await log_in(timeout_at)
            except REFUSALS as refusal:
                refusals.append(refusal)
                raise

        def ended(error: BaseException) -> None:
            said = explained(error, self.config, f"{node.host}:{node.port}")
            if self.trouble is None or not isinstance(said, _OUT_OF_TIME):
                self.trouble = said
            if isinstance(said, SecurityError):
                refusals.append(said)
                self._auth_failures[node.node_id] = said

        conn._sasl_authenticate = noting  # noqa: SLF001
        conn.close_future.add_errback(ended)
        await super()._connect(node, conn, **options)
        if refusals:
            self._auth_failures[node.node_id] = refusals[0]  # the library has forgotten it in between


def make_client(**settings: Any) -> KafkaNetClient:
    """What the library's consumers, producers and admin clients talk through."""
    net = NetworkSelector(**settings)
    return KafkaNetClient(net=net, manager=Manager(net, **settings), **settings)
