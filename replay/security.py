"""Settings for access to shards: a bearer token, and TLS files. No gRPC here.

`wire/guard.py` applies them in a shard's server, `wire/connection.py` in its clients.
"""

from __future__ import annotations

import contextlib
import ipaddress
import os
import re
import secrets
import ssl
import tempfile
from dataclasses import dataclass, field
from pathlib import Path
from typing import ClassVar

from rl.errors import BadInput, BadSetting
from rl.resuming import Rules, rules

TOKEN_VARIABLE = "QFLEET_TOKEN"
TOKEN_SHAPE = re.compile(r"[\x21-\x7e]{16,512}")  # valid in an HTTP header without escapes


@dataclass(frozen=True)
class SecurityConfig:
    """TLS and access token of the replay service. The files must exist at these paths on every machine of the run."""

    certificate: str = ""
    """PEM file with a certificate. In a shard it turns TLS on; in a client it is for mutual TLS."""
    key: str = ""
    """PEM file with the private key of `certificate`, without a password."""
    authority: str = ""
    """PEM file with the CA certificates that signed the other side's certificate; a client with this file uses TLS."""
    mutual: bool = False
    """Mutual TLS: shards reject clients without a certificate signed by `authority`."""
    name: str = ""
    """Host name in the shards' certificate, if it differs from the address that clients connect to."""
    token_file: str = ""
    """File with the token that clients send and shards require; empty: the variable QFLEET_TOKEN, if set."""
    require_token: bool = True
    """Let a shard without a token listen on a loopback address only."""

    on_resume: ClassVar[Rules] = rules(may="certificate key authority mutual name token_file require_token")

    def __post_init__(self) -> None:
        if bool(self.certificate) != bool(self.key):
            given, missing = ("certificate", "key") if self.certificate else ("key", "certificate")
            raise BadSetting(type(self), given, f"is given without `{missing}`: write both")
        if self.mutual and not (self.certificate and self.authority):
            raise BadSetting(type(self), "mutual", "needs `certificate`, `key` and `authority`: write all three")


@dataclass(frozen=True)
class Access:
    """The TLS settings and the token for one side of a connection. Can be pickled; its repr does not show the token."""

    security: SecurityConfig = field(default_factory=SecurityConfig)
    token: str = field(default="", repr=False)

    @classmethod
    def load(cls, security: SecurityConfig) -> Access:
        """Check the files of ``security`` and read the token, from the token file or QFLEET_TOKEN; returns both.

        Raises BadInput if a file is missing, unreadable or malformed.
        """
        _check_certificates(security)
        return cls(security, _read_token(security.token_file))

    @property
    def metadata(self) -> tuple[tuple[str, str], ...]:
        """The gRPC metadata, (name, value) pairs, that a client sends with each call; empty without a token."""
        return (("authorization", f"Bearer {self.token}"),) if self.token else ()

    def read_pem(self, which: str) -> bytes | None:
        """Return the content of the file in the field ``which`` of `SecurityConfig`, or None if the field is empty.

        Raises BadSetting if the file cannot be read.
        """
        path = getattr(self.security, which)
        try:
            return Path(path).read_bytes() if path else None
        except OSError as error:
            raise _unreadable(which, path, error) from error


UNPROTECTED = Access()


def new_token() -> str:
    """Return a token of 256 random bits, encoded for an HTTP header."""
    return secrets.token_urlsafe(32)


def make_token_file(path: str) -> bool:
    """Write a new token to ``path``, readable by its owner only; returns whether it did.

    Does nothing if the file exists or ``path`` is empty. Safe if several processes call it at the same time: one of
    them creates the file, with its complete content. Raises BadSetting if the file cannot be written.
    """
    if not path or Path(path).exists():
        return False
    try:
        handle, temporary = tempfile.mkstemp(dir=Path(path).parent, prefix=f".{Path(path).name}.")  # mode 0600
        try:
            with os.fdopen(handle, "w") as file:
                file.write(new_token() + "\n")
            with contextlib.suppress(FileExistsError):
                os.link(temporary, path)
                return True
        finally:
            os.unlink(temporary)
    except OSError as error:
        raise BadSetting(
            SecurityConfig, "token_file", f"{path} cannot be written ({error.strerror}): write another path"
        ) from error
    return False


def check_listening(host: str, access: Access) -> None:
    """Raise BadSetting if a shard on ``host`` needs a token and has none: other machines could reach it."""
    if access.security.require_token and not access.token and not is_loopback(host):
        raise BadSetting(
            SecurityConfig,
            "token_file",
            f"is empty, and other machines can reach a shard on {host} without a token: name a file (it is created if "
            f"it is missing), set {TOKEN_VARIABLE}, or write `require_token: false`",
        )


def is_loopback(host: str) -> bool:
    """Return whether only this machine can reach ``host``. Of host names, only localhost counts as loopback."""
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


def host_port(host: str, port: int) -> str:
    """Return the address ``host:port``, with brackets around an IPv6 address."""
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"


def _read_token(path: str) -> str:
    """Return the token from the file, else from the environment, else "". Errors (BadInput) never quote the token."""
    if not path:
        token = os.environ.get(TOKEN_VARIABLE, "")
        if not token:
            return ""
    else:
        try:
            token = Path(path).read_text("ascii").strip()
        except OSError as error:
            raise _unreadable("token_file", path, error) from error
        except UnicodeDecodeError:
            token = ""
    if not TOKEN_SHAPE.fullmatch(token):
        message = "holds no valid token: write one word of 16 to 512 printable ASCII characters"
        raise (
            BadSetting(SecurityConfig, "token_file", f"{path} {message}")
            if path
            else BadInput(f"{TOKEN_VARIABLE} {message}")
        )
    return token


def _check_certificates(security: SecurityConfig) -> None:
    """Raise BadInput unless the files are readable and in PEM format, and the key belongs to the certificate."""
    for which in ("certificate", "key", "authority"):
        Access(security).read_pem(which)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    if security.authority:
        try:
            context.load_verify_locations(security.authority)
        except ssl.SSLError as error:
            message = f"{security.authority} holds no certificate in PEM format"
            raise BadSetting(SecurityConfig, "authority", message) from error
    if security.certificate:
        try:
            context.load_cert_chain(security.certificate, security.key, password=lambda: "")
        except ssl.SSLError as error:
            raise BadSetting(
                SecurityConfig,
                "certificate",
                f"{security.certificate} and `key` {security.key} are not a certificate and its private key (without a "
                f"password) in PEM format: {error.reason or error}",
            ) from error


def _unreadable(field: str, path: str, error: OSError) -> BadSetting:
    return BadSetting(SecurityConfig, field, f"{path} cannot be read: {error.strerror}")
