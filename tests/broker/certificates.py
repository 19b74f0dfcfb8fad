"""Certificates of an authority that lives as long as a test: PEM files for Kafka and for its clients."""

from datetime import UTC, datetime, timedelta
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.serialization import (
    BestAvailableEncryption,
    Encoding,
    KeySerializationEncryption,
    NoEncryption,
    PrivateFormat,
    load_pem_private_key,
)
from trustme import CA, LeafCert


class Authority:
    """Signs certificates and keeps them under `folder`; `cafile` is what trusts it."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        folder.mkdir(parents=True)
        self._ca = CA()
        self.cafile = folder / "ca.pem"
        self._ca.cert_pem.write_to_path(self.cafile)

    def of_broker(self, *names: str) -> Path:
        """One file with the key and the certificate of a broker that is reached under `names`."""
        path = self.folder / f"{names[0]}.pem"
        path.write_bytes(self.shown_by_broker(*names))
        return path

    def shown_by_broker(self, *names: str, until: datetime | None = None) -> bytes:
        """What such a file holds; the certificate is good for long, or until then."""
        ago = until - timedelta(days=1) if until else None
        leaf = self._ca.issue_cert(*names, not_before=ago, not_after=until)
        return _key(leaf, NoEncryption()) + _chain(leaf)

    def revoking(self, *certificates: Path) -> Path:
        """The list of what it has revoked: the first certificate of each of these files."""
        now = datetime.now(UTC)
        issuer = x509.load_pem_x509_certificate(self._ca.cert_pem.bytes()).subject
        listed = x509.CertificateRevocationListBuilder(issuer, now, now + timedelta(days=1))
        for path in certificates:
            serial = x509.load_pem_x509_certificate(path.read_bytes()).serial_number
            revoked = x509.RevokedCertificateBuilder(serial, now).build()
            listed = listed.add_revoked_certificate(revoked)
        key = load_pem_private_key(self._ca.private_key_pem.bytes(), None)
        path = self.folder / f"revoked-{len(certificates)}.pem"
        path.write_bytes(listed.sign(key, SHA256()).public_bytes(Encoding.PEM))  # type: ignore[arg-type]
        return path

    def of_client(
        self, name: str, password: str | None = None, folder: Path | None = None
    ) -> tuple[Path, Path]:
        """The certificate and the key of a client whom Kafka calls `User:CN=name`, here or in another folder."""
        leaf = self._ca.issue_cert(f"{name}.clients.test", common_name=name)
        certificate, key = ((folder or self.folder) / f"{name}.{kind}" for kind in ("pem", "key"))
        certificate.write_bytes(_chain(leaf))
        secret = BestAvailableEncryption(password.encode()) if password else NoEncryption()
        key.write_bytes(_key(leaf, secret))
        return certificate, key


def _key(leaf: LeafCert, secret: KeySerializationEncryption) -> bytes:
    """In the form that Kafka reads."""
    key = load_pem_private_key(leaf.private_key_pem.bytes(), None)
    return key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, secret)


def _chain(leaf: LeafCert) -> bytes:
    return b"".join(certificate.bytes() for certificate in leaf.cert_chain_pems)
