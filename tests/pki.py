"""Certificate authorities, and certificates good and bad in every way that matters, as PEM files for tests."""

from __future__ import annotations

import datetime as dt
import ipaddress
import subprocess
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec, rsa
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

Key = ec.EllipticCurvePrivateKey | rsa.RSAPrivateKey

HERE = ("127.0.0.1", "localhost")
SERVER, CLIENT = ExtendedKeyUsageOID.SERVER_AUTH, ExtendedKeyUsageOID.CLIENT_AUTH


@dataclass(frozen=True, slots=True)
class Identity:
    """A certificate with its key, in memory and as files. chain: the file has the issuers behind it too."""

    certificate: x509.Certificate
    key: Key
    cert_file: Path
    key_file: Path


def now() -> dt.datetime:
    return dt.datetime.now(dt.UTC).replace(microsecond=0)


class Pki:
    """Writes what it makes below directory."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        directory.mkdir(parents=True, exist_ok=True)

    def issue(
        self,
        name: str,
        *,
        issuer: Identity | None = None,
        names: Sequence[str] = HERE,
        common_name: str | None = None,
        days: tuple[float, float] = (-1, 365),
        is_ca: bool = False,
        usage: Sequence[x509.ObjectIdentifier] = (SERVER,),
        rsa_bits: int = 0,
        may_sign_for: str | None = None,
        chain: Sequence[Identity] = (),
    ) -> Identity:
        """A certificate for names (none: no subject alternative name), signed by issuer or by itself.

        days: valid from, to, counted from now. may_sign_for: a CA's name constraint. chain: sent behind it.
        """
        key: Key = rsa.generate_private_key(65537, rsa_bits) if rsa_bits else ec.generate_private_key(ec.SECP256R1())
        subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, common_name or name)])
        start, end = (now() + dt.timedelta(days=each) for each in days)
        builder = (
            x509.CertificateBuilder()
            .subject_name(subject)
            .issuer_name(issuer.certificate.subject if issuer else subject)
            .public_key(key.public_key())
            .serial_number(x509.random_serial_number())
            .not_valid_before(start)
            .not_valid_after(end)
            .add_extension(x509.BasicConstraints(ca=is_ca, path_length=None), critical=True)
            .add_extension(x509.SubjectKeyIdentifier.from_public_key(key.public_key()), critical=False)
        )
        if names and not is_ca:
            builder = builder.add_extension(x509.SubjectAlternativeName([_name(each) for each in names]), False)
        if usage and not is_ca:
            builder = builder.add_extension(x509.ExtendedKeyUsage(usage), critical=False)
        if may_sign_for is not None:
            allowed = x509.NameConstraints(permitted_subtrees=[x509.DNSName(may_sign_for)], excluded_subtrees=None)
            builder = builder.add_extension(allowed, critical=True)
        made = builder.sign(issuer.key if issuer else key, hashes.SHA256())
        return self._write(name, made, key, chain)

    def ca(self, name: str = "ca", **how: object) -> Identity:
        return self.issue(name, is_ca=True, **how)  # type: ignore[arg-type]

    def with_sha1(self, name: str, issuer: Identity) -> Identity:
        """A leaf signed with SHA-1, which the cryptography package would rather not make."""
        leaf = self.issue(name, issuer=issuer)
        request, extensions = self.directory / f"{name}.csr", self.directory / f"{name}.ext"
        extensions.write_text("subjectAltName=IP:127.0.0.1,DNS:localhost\nextendedKeyUsage=serverAuth\n")
        _openssl("req", "-new", "-key", leaf.key_file, "-subj", f"/CN={name}", "-out", request)
        sign = ("-CA", issuer.cert_file, "-CAkey", issuer.key_file, "-set_serial", 7, "-days", 30, "-sha1")
        _openssl("x509", "-req", "-in", request, *sign, "-extfile", extensions, "-out", leaf.cert_file)
        return leaf

    def _write(self, name: str, made: x509.Certificate, key: Key, chain: Sequence[Identity]) -> Identity:
        cert_file, key_file = self.directory / f"{name}.pem", self.directory / f"{name}.key"
        pem = serialization.Encoding.PEM
        cert_file.write_bytes(
            b"".join(each.public_bytes(pem) for each in (made, *(one.certificate for one in chain)))
        )
        key_file.write_bytes(key.private_bytes(pem, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()))
        key_file.chmod(0o600)
        return Identity(made, key, cert_file, key_file)


def _name(text: str) -> x509.GeneralName:
    try:
        return x509.IPAddress(ipaddress.ip_address(text))
    except ValueError:
        return x509.DNSName(text)


def _openssl(*words: object) -> None:
    subprocess.run(["openssl", *map(str, words)], check=True, capture_output=True)
