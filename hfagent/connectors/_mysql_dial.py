"""Reaching the server: a TCP or local socket by a deadline, and what the operating system's and OpenSSL's errors mean."""

from __future__ import annotations

import socket
import ssl
from pathlib import Path

from hfagent.connectors._mysql_config import MySQLFamilyConfig
from hfagent.foundation.clock import Deadline
from hfagent.foundation.errors import AgentError, ConfigError, SourceError
from hfagent.sdk import network

__all__ = ["dial", "socket_error"]


def dial(config: MySQLFamilyConfig, deadline: Deadline, allowed_paths: tuple[Path, ...]) -> socket.socket:
    """Connect to the configured address. Raises `AgentError`; ends by `deadline`."""
    if config.unix_socket is not None:
        return _dial_local(config.unix_socket, deadline, allowed_paths)
    sock, _ = network.dial(config.host or "localhost", config.port, deadline)
    for level, option, value in network.socket_options(config.keepalive_s):
        sock.setsockopt(level, option, value)
    return sock


def socket_error(error: OSError, config: MySQLFamilyConfig) -> AgentError:
    """Classify an error of the operating system or OpenSSL."""
    host, port = config.host or "localhost", config.port
    if isinstance(error, ssl.SSLCertVerificationError):
        return _certificate_error(error, f"{host}:{port}")
    if isinstance(error, ssl.SSLError):
        return _tls_error(error, f"{host}:{port}")
    if config.unix_socket is not None:
        return _local_error(error, config.unix_socket)
    return network.dial_error(error, host, port)


def _dial_local(path: str, deadline: Deadline, allowed_paths: tuple[Path, ...]) -> socket.socket:
    real = Path(path).resolve()
    if not any(real.is_relative_to(allowed.resolve()) for allowed in allowed_paths):
        raise ConfigError(
            f"unix_socket: the agent's policy does not allow {path}", code="config.policy_denied", field="unix_socket",
            hint="add its directory to allowed_paths in the agent's configuration, or connect by host and port",
        )  # fmt: skip
    sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    try:
        sock.settimeout(max(deadline.bounded(3600.0), 0.001))
        sock.connect(str(real))
    except OSError as exc:
        sock.close()
        raise _local_error(exc, path) from exc
    return sock


def _local_error(error: OSError, path: str) -> AgentError:
    if isinstance(error, ConnectionRefusedError | FileNotFoundError):
        return SourceError(
            f"nothing listens at {path}", code="net.refused", hint="check the path, and that the server runs"
        )
    if isinstance(error, PermissionError):
        return ConfigError(
            f"the agent's user may not open {path}",
            field="unix_socket",
            hint="give it access to the socket file and its directory",
        )
    if isinstance(error, TimeoutError):
        return SourceError(f"no answer from {path}", code="net.timeout", hint="check the server")
    return SourceError(
        f"the connection to {path} was cut: {error.strerror}", code="net.reset", hint="it can be repeated"
    )


# OpenSSL's X509_V_ERR_… numbers
_EXPIRED, _NOT_YET_VALID, _HOST_MISMATCH, _IP_MISMATCH = 10, 9, 62, 64


def _certificate_error(error: ssl.SSLCertVerificationError, where: str) -> AgentError:
    if error.verify_code in (_EXPIRED, _NOT_YET_VALID):
        return SourceError(
            f"the certificate of {where} is not valid now: {error.verify_message}", code="tls.expired",
            hint="renew the server's certificate; if it is valid, check the clock of the agent's machine",
        )  # fmt: skip
    if error.verify_code in (_HOST_MISMATCH, _IP_MISMATCH):
        return SourceError(
            f"the certificate of {where} is for another host: {error.verify_message}", code="tls.hostname_mismatch",
            hint="use the name in the certificate as `host`; verify_ca checks the authority only",
        )  # fmt: skip
    return SourceError(
        f"the certificate of {where} is not trusted: {error.verify_message}", code="tls.untrusted",
        hint="paste the certificate of the server's own authority into ssl_ca",
    )  # fmt: skip


def _tls_error(error: ssl.SSLError, where: str) -> AgentError:
    reason = (error.reason or "the handshake failed").replace("_", " ").lower()
    if "certificate" in reason or "unknown ca" in reason:  # an alert from the server: it did not like ours
        return SourceError(
            f"{where} refused the client certificate: {reason}", code="tls.client_cert",
            hint="check ssl_cert and ssl_key, and that the server trusts their authority",
        )  # fmt: skip
    return SourceError(
        f"no TLS session with {where}: {reason}", code="tls.version",
        hint="check that the server offers TLS 1.2 or newer, and tls_min_version",
    )  # fmt: skip
