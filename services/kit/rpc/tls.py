"""TLS from files: certificates of listeners, authorities of channels, identities of services.

Files are checked for changes at every new connection, so renewing them needs no restart.
"""

from __future__ import annotations

import ssl
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Final, Self

import grpc
import structlog

from services.kit import env as read
from services.kit.env import EnvError
from services.kit.errors import Unauthenticated

log = structlog.get_logger()

# A service's certificate has its identity as a URI, and a host name that stays valid wherever its
# server listens.
_IDENTITY: Final = "qflow://service/"
_DOMAIN: Final = "qflow.internal"
_OTHERS_MAY_READ: Final = 0o007

_Seen = tuple[tuple[int, int, int], ...]


def identity_of(service: str) -> str:
    """Return the URI in a service's certificate that identifies it."""
    return f"{_IDENTITY}{service}"


def host_of(service: str) -> str:
    """Return the DNS name in a service's certificates, whatever host it runs on."""
    return f"{service}.{_DOMAIN}"


@dataclass(frozen=True, slots=True)
class KeyPair:
    """The files of a certificate with its chain, and of its private key."""

    certificate: Path
    key: Path


@dataclass(slots=True, kw_only=True)
class Trust:
    """The authorities that a channel trusts for servers, and its own certificate, if any."""

    authorities: Path
    pair: KeyPair | None = None  # if set, TLS is mutual: the server must be the expected service
    _seen: _Seen = field(init=False, default=(), repr=False)
    _held: grpc.ChannelCredentials | None = field(init=False, default=None, repr=False)

    @classmethod
    def from_env(cls, env: Mapping[str, str]) -> Self | None:
        """Read QFLOW_TLS_CA_FILE, and the service's own certificate; None for plain text."""
        pair = service_pair(env)
        if not read.optional(env, "QFLOW_TLS_CA_FILE"):
            return None
        trust = cls(authorities=read.path(env, "QFLOW_TLS_CA_FILE"), pair=pair)
        trust.credentials()  # a missing or invalid file must fail the start
        return trust

    def credentials(self) -> grpc.ChannelCredentials:
        """Return credentials from the files; the same object until the files change.

        The first time, EnvError names an unusable file. Later the old credentials stay in use while
        files do not match: they are replaced one after the other.
        """
        try:
            seen = self._look()
            if self._held is None or seen != self._seen:
                self._held, self._seen = self._read(), seen
        except EnvError as fault:
            if self._held is None:
                raise
            log.warning("certificate_not_renewed", fault=str(fault))
        return self._held

    def _look(self) -> _Seen:
        own = () if self.pair is None else (self.pair.certificate, self.pair.key)
        return _seen(self.authorities, *own)

    def _read(self) -> grpc.ChannelCredentials:
        authorities = _authorities(self.authorities)
        if self.pair is None:
            return grpc.ssl_channel_credentials(authorities)
        key, certificate = _checked(self.pair)
        return grpc.ssl_channel_credentials(authorities, key, certificate)


@dataclass(slots=True)
class ServerTls:
    """A listener's certificate; with `clients`, callers need a certificate of that authority."""

    pair: KeyPair
    clients: Path | None = None
    _seen: _Seen = field(init=False, default=(), repr=False)

    def credentials(self) -> grpc.ServerCredentials:
        """Return credentials that reload the files for new connections after they changed."""
        self._seen = self._look()
        return grpc.dynamic_ssl_server_credentials(
            self._configuration(),
            self._changed,  # type: ignore[arg-type]  # None is what the library documents
            require_client_authentication=self.clients is not None,
        )

    def _look(self) -> _Seen:
        more = () if self.clients is None else (self.clients,)
        return _seen(self.pair.certificate, self.pair.key, *more)

    def _changed(self) -> grpc.ServerCertificateConfiguration | None:
        """Return the new configuration; None while the files have not changed.

        Runs in a thread of the library. If files do not match yet, the old configuration stays.
        """
        try:
            seen = self._look()
            if seen == self._seen:
                return None
            configuration = self._configuration()
        except EnvError as fault:
            log.warning("certificate_not_renewed", fault=str(fault))
            return None
        self._seen = seen
        log.info("certificate_renewed", file=str(self.pair.certificate))
        return configuration

    def _configuration(self) -> grpc.ServerCertificateConfiguration:
        authorities = None if self.clients is None else _authorities(self.clients)
        return grpc.ssl_server_certificate_configuration([_checked(self.pair)], authorities)


def users_tls(env: Mapping[str, str]) -> ServerTls | None:
    """Read the certificate for users: QFLOW_TLS_CERTIFICATE_FILE and QFLOW_TLS_KEY_FILE."""
    pair = _pair(env, "QFLOW_TLS_CERTIFICATE_FILE", "QFLOW_TLS_KEY_FILE")
    return None if pair is None else ServerTls(pair)


def services_tls(env: Mapping[str, str]) -> ServerTls | None:
    """Read the TLS between services: mutual with a service certificate, else as for users."""
    pair = service_pair(env)
    if pair is None:
        return users_tls(env)
    return ServerTls(pair, clients=read.path(env, "QFLOW_TLS_CA_FILE"))


def service_pair(env: Mapping[str, str]) -> KeyPair | None:
    """Read this service's own certificate, which turns on mutual TLS between services."""
    pair = _pair(env, "QFLOW_SERVICE_CERTIFICATE_FILE", "QFLOW_SERVICE_KEY_FILE")
    if pair is not None and not read.optional(env, "QFLOW_TLS_CA_FILE"):
        raise EnvError("QFLOW_SERVICE_CERTIFICATE_FILE needs QFLOW_TLS_CA_FILE too")
    return pair


def prove_service(context: Any, name: str) -> None:
    """Raise unless the connection's certificate belongs to the service that its token names."""
    shown = context.auth_context().get("peer_uri", ())
    if identity_of(name).encode() not in shown:
        raise Unauthenticated(
            "SERVICE_NOT_PROVEN",
            "a service's token is accepted only with the certificate of the same service",
        )


def _pair(env: Mapping[str, str], certificate: str, key: str) -> KeyPair | None:
    if not read.optional(env, certificate) and not read.optional(env, key):
        return None
    if not (read.optional(env, certificate) and read.optional(env, key)):
        raise EnvError(f"{certificate} and {key} go together")
    return KeyPair(read.path(env, certificate), read.path(env, key))


def _checked(pair: KeyPair) -> tuple[bytes, bytes]:
    """Read a key and its certificate for grpc; raises if they are unusable or do not match."""
    key, certificate = _bytes(pair.key), _bytes(pair.certificate)
    if pair.key.stat().st_mode & _OTHERS_MAY_READ:
        raise EnvError(f"{pair.key} contains a private key that every user may read: chmod 600")
    try:
        ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER).load_cert_chain(
            pair.certificate, pair.key, password=_no_password
        )
    except (ssl.SSLError, OSError):
        raise EnvError(
            f"{pair.certificate} and {pair.key} are not a certificate and its key in PEM"
        ) from None
    ends = _expires_at(certificate)
    if ends <= datetime.now(UTC):
        raise EnvError(f"the certificate in {pair.certificate} expired at {ends.isoformat()}")
    return key, certificate


def _authorities(file: Path) -> bytes:
    authorities = _bytes(file)
    try:
        ssl.create_default_context(cadata=authorities.decode("ascii"))
    except (ssl.SSLError, UnicodeDecodeError):
        raise EnvError(f"{file} contains no certificates in PEM") from None
    return authorities


def _expires_at(certificate: bytes) -> datetime:
    from cryptography import x509  # late: not needed in plain text

    return x509.load_pem_x509_certificate(certificate).not_valid_after_utc


def _no_password() -> bytes:
    raise EnvError("a private key must not be encrypted: nobody can enter its password")


def _bytes(file: Path) -> bytes:
    try:
        return file.read_bytes()
    except OSError:
        raise EnvError(f"{file} cannot be read") from None


def _seen(*files: Path) -> _Seen:
    found = []
    for file in files:
        try:
            status = file.stat()
        except OSError:
            raise EnvError(f"{file} cannot be read") from None
        found.append((status.st_mtime_ns, status.st_ino, status.st_size))
    return tuple(found)
