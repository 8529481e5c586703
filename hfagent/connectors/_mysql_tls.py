"""TLS for MySQL and MariaDB: what each `ssl_mode` means, as an `ssl.SSLContext` made from PEM texts.

| mode | server offers no TLS | authority checked | host name checked |
|---|---|---|---|
| preferred | plain text | only when ssl_ca is given | no |
| required | refused | only when ssl_ca is given | no |
| verify_ca | refused | yes | no |
| verify_identity | refused | yes | yes |

A failed handshake or verification never falls back to plain text, in no mode.
"""

from __future__ import annotations

import os
import ssl
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from hfagent.connectors._mysql_config import MySQLFamilyConfig
from hfagent.foundation.errors import ConfigError

__all__ = ["tls_context", "verifies"]


def verifies(config: MySQLFamilyConfig) -> bool:
    """Whether a TLS session under this configuration proves the server's authority."""
    return config.ssl_mode in ("verify_ca", "verify_identity") or bool(config.ssl_ca and config.ssl_mode != "disabled")


def tls_context(config: MySQLFamilyConfig) -> ssl.SSLContext | None:
    """Make the context, or None when encryption is disabled. Raises `ConfigError` for texts that are no PEM."""
    if config.ssl_mode == "disabled":
        return None
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.minimum_version = ssl.TLSVersion.TLSv1_3 if config.tls_min_version == "1.3" else ssl.TLSVersion.TLSv1_2
    # The certificates that servers make for themselves lack extensions which OpenSSL's strict mode asks for.
    context.verify_flags &= ~ssl.VERIFY_X509_STRICT
    context.check_hostname = config.ssl_mode == "verify_identity"
    context.verify_mode = ssl.CERT_REQUIRED if verifies(config) else ssl.CERT_NONE
    if config.ssl_ca:
        try:
            context.load_verify_locations(cadata=config.ssl_ca)
        except (ssl.SSLError, ValueError) as exc:
            raise ConfigError(
                "ssl_ca: this is not a PEM certificate", field="ssl_ca",
                hint="paste the text from -----BEGIN CERTIFICATE----- to -----END CERTIFICATE-----",
            ) from exc  # fmt: skip
    elif verifies(config):
        context.load_default_certs()
    if config.ssl_cert and config.ssl_key:
        _load_client_certificate(context, config)
    return context


def _load_client_certificate(context: ssl.SSLContext, config: MySQLFamilyConfig) -> None:
    key = config.ssl_key.reveal() if config.ssl_key else ""
    # Given as a function, so that OpenSSL never asks on the terminal when the key turns out to be encrypted.
    password = config.ssl_key_password.reveal() if config.ssl_key_password else ""
    with _as_file(f"{config.ssl_cert}\n{key}\n") as path:
        try:
            context.load_cert_chain(path, password=lambda: password)
        except (ssl.SSLError, ValueError) as exc:
            raise ConfigError(
                "ssl_cert, ssl_key: the client certificate or its key cannot be read, or they do not belong together",
                code="tls.client_cert", field="ssl_key", hint="paste both as PEM text; an encrypted key needs ssl_key_password",
            ) from exc  # fmt: skip


@contextmanager
def _as_file(text: str) -> Iterator[str]:
    """The path of a file with this text, for as long as OpenSSL needs to read it: in memory, or private and deleted."""
    if hasattr(os, "memfd_create"):
        descriptor = os.memfd_create("hfagent", os.MFD_CLOEXEC)
        try:
            os.write(descriptor, text.encode())
            yield f"/proc/self/fd/{descriptor}"
        finally:
            os.close(descriptor)
        return
    descriptor, name = tempfile.mkstemp(prefix="hfagent-")  # mode 0600
    try:
        with os.fdopen(descriptor, "w") as file:
            file.write(text)
        yield name
    finally:
        with suppress(FileNotFoundError):
            Path(name).unlink()
