"""TLS: what a client trusts and shows, and why a connection did not come about, in words that name key and mend.

Comes in: the client's keywords, and errors of the library and of OpenSSL. Goes out: a context for each connection, so
that files which were renewed are used from the next one on, and a `SecurityError` where trying again cannot help.
"""

import logging
import ssl
from collections.abc import Generator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from kafka.errors import InvalidReceiveError, KafkaConnectionError, KafkaError

Settings = Mapping[str, Any]

log = logging.getLogger(__name__)

_NAMES = (
    "ssl_check_hostname",
    "ssl_cafile",
    "ssl_certfile",
    "ssl_keyfile",
    "ssl_password",
    "ssl_crlfile",
    "ssl_ciphers",
)
_ALERT = 0x1503  # how an alert of TLS begins, which is taken for the length of an answer
_OF_US = ("CERTIFICATE", "UNKNOWN_CA", "ACCESS_DENIED", "HANDSHAKE_FAILURE", "PROTOCOL_VERSION")
_OTHER_NAME = (62, 63, 64)  # OpenSSL's codes: host, e-mail, address
_OTHER_SIGNER = (2, 18, 19, 20, 21)
_REVOKED = (3, 12, 23)  # also: there is no list, or it is out of date


class SecurityError(KafkaError):
    """No connection can come about as things are set; `text` says why, and the mend.

    `ours` is whether our own files say so, before anybody was asked.
    """

    def __init__(self, text: str, *, ours: bool = False) -> None:
        super().__init__(text)
        self.text = text
        self.ours = ours


_good: dict[tuple[Any, ...], ssl.SSLContext] = {}
"""What files last said that could be used, by the settings that name them."""


def make_context(settings: Settings) -> ssl.SSLContext:
    """What files and keys say now; while these cannot be used, what they said before. Raises SecurityError where they
    never could be.

    Who renews files writes one after the other, and a worker that runs may look in between.
    """
    names = tuple(settings.get(name) for name in _NAMES)
    try:
        _good[names] = _as_they_are(settings)
    except SecurityError as error:
        if names not in _good:
            raise
        log.warning("%s; what the files held before is used", error.text)
        if cafile := settings["ssl_cafile"]:
            with suppress(OSError):  # whoever is trusted since then
                _good[names].load_verify_locations(cafile)
    return _good[names]


def _as_they_are(settings: Settings) -> ssl.SSLContext:
    """A context of these settings. Raises SecurityError.

    The library's own asks for a password at the terminal, takes ciphers and forgets them, and cannot read lists of
    revoked certificates.
    """
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    context.check_hostname = settings["ssl_check_hostname"]
    if cafile := settings["ssl_cafile"]:
        with _reading("ssl_cafile", cafile, "it has to hold the certificates of authorities, PEM"):
            context.load_verify_locations(cafile)
    else:
        context.load_default_certs()
    if certfile := settings["ssl_certfile"]:
        with _reading("ssl_certfile", certfile, "it has to hold the client's certificate, PEM"):
            ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT).load_verify_locations(certfile)
        keyfile = settings["ssl_keyfile"] or certfile
        with _reading("ssl_keyfile", keyfile, _about_key(keyfile, settings["ssl_password"])):
            context.load_cert_chain(certfile, keyfile, settings["ssl_password"] or "")
    if crlfile := settings["ssl_crlfile"]:
        with _reading(
            "ssl_crlfile", crlfile, "it has to hold the authority's list of revoked certificates, PEM"
        ):
            context.load_verify_locations(crlfile)
        context.verify_flags |= ssl.VERIFY_CRL_CHECK_LEAF
    if ciphers := settings.get("ssl_ciphers"):
        with _reading("ssl_ciphers", ciphers, "write them as OpenSSL does, see `openssl ciphers`"):
            context.set_ciphers(ciphers)
    return context


@contextmanager
def _reading(key: str, value: str, mend: str) -> Generator[None]:
    """Errors of OpenSSL and of the file system -> a SecurityError that names the key."""
    try:
        yield
    except ssl.SSLError as error:
        why = f" ({_brief(error)})" if _reason(error) else ""
        raise SecurityError(f"kafka.{key} = {value!r} cannot be used{why}: {mend}", ours=True) from error
    except OSError as error:
        why = f"cannot be read: {error.strerror}; mend path or rights"
        raise SecurityError(f"kafka.{key} = {value!r} {why}", ours=True) from error


def _about_key(keyfile: str, password: str | None) -> str:
    with suppress(OSError):
        if b"ENCRYPTED" in Path(keyfile).read_bytes():
            holds = "does not hold" if password else "has to name the file that holds"
            return f"it is encrypted; kafka.ssl_password_file {holds} its password"
    return "it has to hold the key of kafka.ssl_certfile, PEM"


def explained(error: BaseException, settings: Settings, address: str) -> BaseException:
    """Why there is no connection to `address`: a SecurityError where trying again cannot help; else the error itself,
    or one that says more.
    """
    protocol = settings["security_protocol"]
    mend = f"mend kafka.security_protocol = {protocol!r}, or the port in kafka.bootstrap_servers"
    cause = _openssl(error)
    said: BaseException = error
    if isinstance(error, SecurityError):
        pass
    elif isinstance(cause, ssl.SSLCertVerificationError):
        said = SecurityError(f"the broker at {address} is not trusted: {_distrust(cause, settings)}")
    elif isinstance(cause, ssl.SSLError) and _is_about_us(cause):
        said = SecurityError(f"the broker at {address} refuses us ({_brief(cause)}); {_shown(settings)}")
    elif isinstance(error, InvalidReceiveError) and _is_alert(error):
        said = SecurityError(f"the broker at {address} speaks TLS; {mend}")
    elif isinstance(cause, ssl.SSLEOFError):
        said = KafkaConnectionError(
            f"{address} ended the connection in the middle of TLS; if it speaks none, {mend}"
        )
    elif _is_hung_up(error) and not protocol.startswith("SASL"):
        said = KafkaConnectionError(
            f"{address} ended the connection without an answer; if it wants a login, {mend}"
        )
    return said


def _is_hung_up(error: BaseException) -> bool:
    """Whether the other side has closed the connection; what it had not read by then makes that a reset."""
    reset = any(isinstance(reason, ConnectionResetError) for reason in (error, error.__cause__, *error.args))
    return reset or "socket disconnected" in str(error)


def _distrust(error: ssl.SSLCertVerificationError, settings: Settings) -> str:
    said = str(error.verify_message).rstrip(".")
    authorities = (
        f"kafka.ssl_cafile = {settings['ssl_cafile']!r}" if settings["ssl_cafile"] else "kafka.ssl_cafile"
    )
    if error.verify_code in _OTHER_NAME:
        return (
            f"{said}; mend the name in kafka.bootstrap_servers (or in the broker's advertised.listeners), or the "
            "certificate; kafka.ssl_check_hostname = false does without"
        )
    if error.verify_code in _OTHER_SIGNER:
        return f"{said}; {authorities} has to hold the certificate of the authority that signed the broker's"
    if error.verify_code in _REVOKED:
        return f"{said}; see kafka.ssl_crlfile = {settings['ssl_crlfile']!r}"
    return f"{said}; mend the broker's certificate, or this machine's clock"


def _shown(settings: Settings) -> str:
    if not settings["ssl_certfile"]:
        return "where it asks for a certificate, set kafka.ssl_certfile and kafka.ssl_keyfile"
    return (
        f"kafka.ssl_certfile = {settings['ssl_certfile']!r} has to be signed by an authority that it trusts"
    )


def _openssl(error: BaseException) -> BaseException | None:
    """The error of OpenSSL that the library has wrapped, in one way or the other."""
    wrapped = [error, *error.args, error.__cause__, error.__context__]
    return next((each for each in wrapped if isinstance(each, ssl.SSLError)), None)


def _is_about_us(error: ssl.SSLError) -> bool:
    """Whether the other side says what it has against us, and not only that something went wrong."""
    reason = _reason(error)
    return "ALERT" in reason and any(word in reason for word in _OF_US)


def _is_alert(error: InvalidReceiveError) -> bool:
    length = str(error).rsplit(" ", 1)[-1]
    return length.isdecimal() and int(length) >> 16 == _ALERT


def _brief(error: ssl.SSLError) -> str:
    return _reason(error).replace("_", " ").lower()


def _reason(error: ssl.SSLError) -> str:
    """OpenSSL's word for it; errors that Python raises in its stead have none, not even the attribute."""
    return getattr(error, "reason", None) or ""
