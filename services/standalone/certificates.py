"""Certificates of a suite: its own authority, and a short-lived certificate per service.

Run as a separate process (`python -m services.standalone certificates`), since the library is large
and only needed for a moment. Certificates that are still valid for a while are kept.
"""

from __future__ import annotations

import ipaddress
import os
import socket
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Final

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from services.kit.rpc.tls import host_of, identity_of
from services.standalone.addresses import SERVICES
from services.standalone.home import write_private
from services.standalone.process import StandaloneError
from services.standalone.tls_files import AUTHORITY, certificate_of, key_of

LIFE_DAYS: Final = 7
_AUTHORITY_DAYS: Final = 3650
# The largest expected difference between two machines' clocks.
_BEFORE: Final = timedelta(minutes=5)
# The remaining fraction of its life at which a certificate is renewed: a suite that was suspended
# for days still has time to notice.
_LEFT_MIN: Final = 0.5
_LOCAL: Final = ("localhost", "127.0.0.1", "::1")
_ANYWHERE: Final = frozenset({"0.0.0.0", "::", "*", ""})  # noqa: S104 - not a host name


@dataclass(frozen=True, slots=True)
class _Signer:
    certificate: x509.Certificate
    key: ec.EllipticCurvePrivateKey


def ensure(
    folder: Path,
    hosts: Sequence[str],
    *,
    now: datetime | None = None,
    days: int = LIFE_DAYS,
    renew: bool = False,
) -> list[str]:
    """Create missing certificates and renew those about to expire or for other hosts.

    Returns the services whose certificates were made. With `renew` all services get new keys and
    certificates. The authority is created once, so that clients that trust it keep doing so.
    """
    now = now or datetime.now(UTC)
    try:
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        signer = _authority(folder, now)
        names = [*dict.fromkeys((*_LOCAL, *hosts))]
        made = []
        for service in SERVICES:
            if renew or not _holds(folder, service, names, signer, now):
                _issue(folder, service, names, signer=signer, now=now, days=days)
                made.append(service)
    except OSError as error:
        raise StandaloneError(
            f"{folder}: no certificates can be created ({error.strerror})"
        ) from None
    return made


def hosts_of(env: Mapping[str, str]) -> list[str]:
    """Return the names and addresses by which users may reach this machine's services."""
    found = [socket.gethostname(), *listed(env)]
    for service in SERVICES:
        listen = env.get(f"QFLOW_{service.upper()}_LISTEN", "")
        if not listen.startswith("unix:"):
            found.append(listen.rpartition(":")[0].strip("[]"))
    return [host for host in found if host not in _ANYWHERE]


def listed(env: Mapping[str, str]) -> Iterator[str]:
    """Return the names and addresses of QFLOW_TLS_HOSTS."""
    text = env.get("QFLOW_TLS_HOSTS", "")
    yield from (each.strip() for each in text.split(",") if each.strip())


def _authority(folder: Path, now: datetime) -> _Signer:
    certificate, key = folder / AUTHORITY, folder / "authority.key"
    if certificate.exists() and key.exists():
        found = serialization.load_pem_private_key(key.read_bytes(), password=None)
        assert isinstance(found, ec.EllipticCurvePrivateKey)
        return _Signer(x509.load_pem_x509_certificate(certificate.read_bytes()), found)
    made = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "Qflow")])
    signed = (
        _begun(name, name, made.public_key(), now, _AUTHORITY_DAYS)
        .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
        .add_extension(_usage(signs=True), critical=True)
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(made.public_key()), critical=False)
        .sign(made, hashes.SHA256())
    )
    _write(key, _pem(made))
    _write(certificate, signed.public_bytes(serialization.Encoding.PEM))
    return _Signer(signed, made)


def _issue(
    folder: Path,
    service: str,
    hosts: Sequence[str],
    *,
    signer: _Signer,
    now: datetime,
    days: int,
) -> None:
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, f"Qflow {service}")])
    both = [ExtendedKeyUsageOID.SERVER_AUTH, ExtendedKeyUsageOID.CLIENT_AUTH]
    signed = (
        _begun(name, signer.certificate.subject, key.public_key(), now, days)
        .add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
        .add_extension(_usage(signs=False), critical=True)
        .add_extension(x509.ExtendedKeyUsage(both), critical=False)
        .add_extension(x509.SubjectAlternativeName(_names(service, hosts)), critical=False)
        .add_extension(
            x509.AuthorityKeyIdentifier.from_issuer_public_key(signer.key.public_key()),
            critical=False,
        )
        .sign(signer.key, hashes.SHA256())
    )
    # The key first: until the certificate follows, readers see that the two do not match.
    _write(key_of(folder, service), _pem(key))
    _write(certificate_of(folder, service), signed.public_bytes(serialization.Encoding.PEM))


def _holds(
    folder: Path, service: str, hosts: Sequence[str], signer: _Signer, now: datetime
) -> bool:
    """Return whether a service's certificate is from this authority, for these hosts, and fresh."""
    try:
        found = x509.load_pem_x509_certificate(certificate_of(folder, service).read_bytes())
        found.verify_directly_issued_by(signer.certificate)
        key = serialization.load_pem_private_key(key_of(folder, service).read_bytes(), None)
        names = found.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    except Exception:  # noqa: BLE001 - whatever is wrong with it, it is replaced
        return False
    ends = found.not_valid_after_utc
    life = ends - found.not_valid_before_utc
    fresh = ends - now > life * _LEFT_MIN
    return fresh and key.public_key() == found.public_key() and [*names] == _names(service, hosts)


def _names(service: str, hosts: Sequence[str]) -> list[x509.GeneralName]:
    names: list[x509.GeneralName] = [
        x509.UniformResourceIdentifier(identity_of(service)),
        x509.DNSName(host_of(service)),
    ]
    for host in hosts:
        try:
            names.append(x509.IPAddress(ipaddress.ip_address(host)))
        except ValueError:
            try:
                names.append(x509.DNSName(host))
            except ValueError:
                raise StandaloneError(
                    f"QFLOW_TLS_HOSTS: {host!r} is neither an ASCII host name nor an address"
                ) from None
    return names


def _begun(
    subject: x509.Name, issuer: x509.Name, key: ec.EllipticCurvePublicKey, now: datetime, days: int
) -> x509.CertificateBuilder:
    return (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(issuer)
        .public_key(key)
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - _BEFORE)
        .not_valid_after(now + timedelta(days=days))
    )


def _usage(*, signs: bool) -> x509.KeyUsage:
    return x509.KeyUsage(
        digital_signature=True,
        content_commitment=False,
        key_encipherment=False,
        data_encipherment=False,
        key_agreement=False,
        key_cert_sign=signs,
        crl_sign=signs,
        encipher_only=False,
        decipher_only=False,
    )


def _pem(key: ec.EllipticCurvePrivateKey) -> bytes:
    return key.private_bytes(
        serialization.Encoding.PEM,
        serialization.PrivateFormat.PKCS8,
        serialization.NoEncryption(),
    )


def _write(path: Path, text: bytes) -> None:
    write_private(path, text.decode("ascii"))


def main(folder: Path, hosts: Sequence[str], *, days: int, renew: bool) -> str:
    """Create or renew certificates; returns a message about what was made."""
    made = ensure(folder, [*hosts_of(os.environ), *hosts], days=days, renew=renew)
    if not made:
        return f"the certificates in {folder} hold for a while yet; --renew makes others"
    return f"certificates for {', '.join(made)} lie in {folder}; {AUTHORITY} is what to believe"
