"""One broker whose every door asks for something else, and what each kind of client brings to it.

    OPEN        nothing
    LOGIN       a password, in the clear
    SECRET      TLS
    MUTUAL      TLS, and a certificate of the client
    BOTH        TLS, and a password
    ELSEWHERE   TLS, with a certificate for another name

Whoever is not in `SUPER` may do what `allow` has allowed and nothing else; who brings no name may do everything.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from kafka.admin import (
    ACL,
    ACLOperation,
    ACLPermissionType,
    KafkaAdminClient,
    ResourcePattern,
    ResourceType,
    UserScramCredentialUpsertion,
)

from tests.apache_kafka import LOOPBACK, Cluster
from tests.broker.certificates import Authority

PASSWORD = "c0rrect-h0rse"  # of all users
KEY_PASSWORD = "st4ple-0f-keys"
SUPER = ("worker", "scrammer")
PLAIN_USERS = ("worker", "guest")
SCRAM = "SCRAM-SHA-512"

_MODULES = "org.apache.kafka.common.security"
_DOORS = {"LOGIN": "SASL_PLAINTEXT", "SECRET": "SSL", "MUTUAL": "SSL", "BOTH": "SASL_SSL", "ELSEWHERE": "SSL"}


class Guarded:
    """The broker: addresses of its `doors`, and what goes with them."""

    def __init__(self, cluster: Cluster, authority: Authority) -> None:
        self._broker = cluster.brokers[0]
        self.open = cluster.bootstrap_servers
        self.doors = {"OPEN": self.open} | cluster.brokers[0].doors
        self.authority = authority
        self.own = authority.folder / f"{LOOPBACK}.pem"
        """The broker's certificate, with its key."""
        self.certificate, self.key = authority.of_client("worker", KEY_PASSWORD)
        self.key_password = authority.folder / "key-password"
        self.key_password.write_text(KEY_PASSWORD + "\n")

    @property
    def tls(self) -> dict[str, Any]:
        """What a client says that trusts this broker."""
        return {"security_protocol": "SSL", "ssl_cafile": str(self.authority.cafile)}

    @property
    def mutual(self) -> dict[str, Any]:
        """The same, with a certificate of its own."""
        return self.tls | {
            "ssl_certfile": str(self.certificate),
            "ssl_keyfile": str(self.key),
            "ssl_password_file": str(self.key_password),
        }

    def both(self, user: str, mechanism: str = "PLAIN") -> dict[str, Any]:
        """What a client says that trusts this broker and logs in there."""
        return login(user, PASSWORD, mechanism) | self.tls | {"security_protocol": "SASL_SSL"}

    @contextmanager
    def showing(self, certificate: bytes) -> Iterator[None]:
        """Restarts with another certificate and its key, and afterwards with its own again."""
        own = self.own.read_bytes()
        try:
            self._show(certificate)
            yield
        finally:
            self._show(own)

    def _show(self, certificate: bytes) -> None:
        self.own.write_bytes(certificate)
        self._broker.restart()

    def allow(self, user: str, kind: ResourceType, name: str, *operations: ACLOperation) -> None:
        """From now on `user` may do this."""
        admin = KafkaAdminClient(bootstrap_servers=self.open)
        pattern = ResourcePattern(kind, name)
        admin.create_acls(
            [ACL(f"User:{user}", "*", what, ACLPermissionType.ALLOW, pattern) for what in operations]
        )
        admin.close()


def login(user: str, password: str, mechanism: str = "PLAIN") -> dict[str, Any]:
    """What a client says that logs in."""
    return {
        "security_protocol": "SASL_PLAINTEXT",
        "sasl_mechanism": mechanism,
        "sasl_plain_username": user,
        "sasl_plain_password": password,
    }


@contextmanager
def guarded_broker(folder: Path) -> Iterator[Guarded]:
    """Runs while the block does; certificates are made in `folder`."""
    authority = Authority(folder / "authority")
    with Cluster(doors=_DOORS, settings=_settings(authority)) as cluster:
        admin = KafkaAdminClient(bootstrap_servers=cluster.bootstrap_servers)
        admin.alter_user_scram_credentials([UserScramCredentialUpsertion("scrammer", SCRAM, PASSWORD)])
        admin.close()
        yield Guarded(cluster, authority)


def _settings(authority: Authority) -> dict[str, str]:
    users = " ".join(f'user_{name}="{PASSWORD}"' for name in PLAIN_USERS)
    plain = f"{_MODULES}.plain.PlainLoginModule required {users};"
    return {
        "ssl.keystore.type": "PEM",
        "ssl.keystore.location": str(authority.of_broker(LOOPBACK, "localhost")),
        "ssl.truststore.type": "PEM",
        "ssl.truststore.location": str(authority.cafile),
        "listener.name.mutual.ssl.client.auth": "required",
        "listener.name.mutual.ssl.principal.mapping.rules": "RULE:^.*CN=([^,]+).*$/$1/,DEFAULT",
        "listener.name.elsewhere.ssl.keystore.type": "PEM",
        "listener.name.elsewhere.ssl.keystore.location": str(authority.of_broker("elsewhere.test")),
        "sasl.enabled.mechanisms": f"PLAIN,{SCRAM}",
        "listener.name.login.plain.sasl.jaas.config": plain,
        "listener.name.both.plain.sasl.jaas.config": plain,
        f"listener.name.both.{SCRAM.lower()}.sasl.jaas.config": f"{_MODULES}.scram.ScramLoginModule required;",
        f"listener.name.login.{SCRAM.lower()}.sasl.jaas.config": f"{_MODULES}.scram.ScramLoginModule required;",
        "authorizer.class.name": "org.apache.kafka.metadata.authorizer.StandardAuthorizer",
        "super.users": ";".join(f"User:{name}" for name in ("ANONYMOUS", *SUPER)),
    }
