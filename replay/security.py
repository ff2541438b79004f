"""Access control and encryption of shards: a bearer token, and files for TLS.

Plain data, without gRPC: `guard.py` applies it in a shard's server, `connection.py` in its clients.
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
TOKEN_SHAPE = re.compile(r"[\x21-\x7e]{16,512}")  # what a header carries without escapes


@dataclass(frozen=True)
class SecurityConfig:
    """TLS and the token of the replay service. The files are at these paths on each machine with a part of it."""

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
            raise BadSetting(type(self), "mutual", "needs `certificate`, `key` and `authority`: write them too")


@dataclass(frozen=True)
class Access:
    """What both ends of a connection need: plain data that pickles; its repr hides the token."""

    security: SecurityConfig = field(default_factory=SecurityConfig)
    token: str = field(default="", repr=False)

    @classmethod
    def of(cls, security: SecurityConfig) -> Access:
        """The access that the configured files and QFLEET_TOKEN give.

        Raises BadInput when a file is missing, unreadable or malformed.
        """
        _check_certificates(security)
        return cls(security, _read_token(security.token_file))

    @property
    def metadata(self) -> tuple[tuple[str, str], ...]:
        """The (name, value) headers that a client sends with each call; none without a token."""
        return (("authorization", f"Bearer {self.token}"),) if self.token else ()

    def pem(self, which: str) -> bytes | None:
        """Content of the file that the field ``which`` names, or None when it names none.

        Raises BadSetting when the file cannot be read.
        """
        path = getattr(self.security, which)
        try:
            return Path(path).read_bytes() if path else None
        except OSError as error:
            raise _unreadable(which, path, error) from error


UNPROTECTED = Access()


def new_token() -> str:
    """A token of 256 random bits, in characters that a header carries."""
    return secrets.token_urlsafe(32)


def make_token_file(path: str) -> bool:
    """Write a new token to ``path`` where there is no file yet, readable by its owner only; returns whether it did.

    Several processes may do so at once: the file appears complete, and the first one wins. Raises BadSetting when it
    cannot be written.
    """
    if not path or Path(path).exists():
        return False
    try:
        handle, aside = tempfile.mkstemp(dir=Path(path).parent, prefix=f".{Path(path).name}.")  # mode 0600
        try:
            with os.fdopen(handle, "w") as file:
                file.write(new_token() + "\n")
            with contextlib.suppress(FileExistsError):
                os.link(aside, path)
                return True
        finally:
            os.unlink(aside)
    except OSError as error:
        raise BadSetting(SecurityConfig, "token_file", f"{path} cannot be written: {error.strerror}") from error
    return False


def check_listening(host: str, access: Access) -> None:
    """Raise BadSetting when a shard on ``host`` could be reached from other machines but needs a token and has none."""
    if access.security.require_token and not access.token and not is_loopback(host):
        raise BadSetting(
            SecurityConfig,
            "token_file",
            f"names no file, and a shard on {host}, which other machines can reach, asks for no token: name one (it is made "
            f"if it is missing), set {TOKEN_VARIABLE}, or write `require_token: false`",
        )


def is_loopback(host: str) -> bool:
    """Whether only this machine reaches ``host``; a name other than localhost counts as reachable by others."""
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


def host_port(host: str, port: int) -> str:
    """The address ``host:port``, with brackets around an IPv6 address."""
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"


def _read_token(path: str) -> str:
    """The token in the file, or in the environment, or none. Raises BadInput, which never quotes it."""
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
        said = "holds no token: it needs one word of 16 to 512 printable ASCII characters"
        raise (
            BadSetting(SecurityConfig, "token_file", f"{path} {said}") if path else BadInput(f"{TOKEN_VARIABLE} {said}")
        )
    return token


def _check_certificates(security: SecurityConfig) -> None:
    """Raise BadInput unless the files are PEM, readable, and certificate and key belong together."""
    for which in ("certificate", "key", "authority"):
        Access(security).pem(which)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    if security.authority:
        try:
            context.load_verify_locations(security.authority)
        except ssl.SSLError as error:
            said = f"{security.authority} holds no certificate in PEM form"
            raise BadSetting(SecurityConfig, "authority", said) from error
    if security.certificate:
        try:
            context.load_cert_chain(security.certificate, security.key, password=lambda: "")
        except ssl.SSLError as error:
            raise BadSetting(
                SecurityConfig,
                "certificate",
                f"{security.certificate} and `key` {security.key} are not a certificate and its private key (without a "
                f"password) in PEM form: {error.reason or error}",
            ) from error


def _unreadable(field: str, path: str, error: OSError) -> BadSetting:
    return BadSetting(SecurityConfig, field, f"{path} cannot be read: {error.strerror}")
