"""Hosts and certificates: names checked, resolved within a limit, dialled, told apart when they fail.

Targets that no connector has any business with (link-local, metadata services, multicast) are refused on the resolved
address, whatever the name looked like. Loopback and private networks are ordinary for an agent that sits beside the data.
"""

from __future__ import annotations

import errno
import ipaddress
import queue
import re
import socket
import threading
import time
from datetime import UTC, datetime, timedelta
from typing import Any, Final

from hfagent.foundation.clock import Deadline
from hfagent.foundation.errors import AgentError, ConfigError, SourceError
from hfagent.sdk.probe import Probe

__all__ = ["check_certificate", "check_egress", "dial", "probe_dns", "probe_tcp", "resolve", "validate_host"]

_DNS_S: Final = 5.0
_DIAL_S: Final = 5.0
_HOST: Final = re.compile(r"[^\s/,@=\x00?#\\]+")

_FORBIDDEN: Final = tuple(
    ipaddress.ip_network(text)
    for text in (
        "0.0.0.0/8", "169.254.0.0/16", "100.100.100.200/32", "192.0.0.192/32", "168.63.129.16/32", "224.0.0.0/4",
        "255.255.255.255/32", "::/128", "fe80::/10", "ff00::/8", "fd00:ec2::254/128",
    )
)  # fmt: skip
_NAT64: Final = ipaddress.ip_network("64:ff9b::/96")


def validate_host(text: str, *, allow_list: bool = False, allow_directory: bool = False) -> str:
    """Return a host name in its canonical (IDNA, lower case) form. Raises `ValueError` saying what is wrong.

    `allow_list` permits a comma-separated list (failover), `allow_directory` an absolute socket directory.
    """
    if allow_directory and text.startswith("/"):
        if "\0" in text or "," in text:
            raise ValueError("a socket directory cannot contain a comma or NUL")
        return text
    if allow_list and "," in text:
        return ",".join(validate_host(part.strip()) for part in text.split(","))
    host = text.strip().strip("[]") if text.strip().startswith("[") else text.strip()
    if not host or not _HOST.fullmatch(host):
        raise ValueError("a host is a name or an address, without '/', ',', '@', '=' or blanks")
    if ":" in host:
        try:
            return str(ipaddress.ip_address(host.split("%")[0]))
        except ValueError:
            raise ValueError("a host does not contain a port; there is a field for it") from None
    if host.isascii():
        return host.lower()
    try:
        return host.encode("idna").decode("ascii").lower()
    except UnicodeError:
        raise ValueError("the host name cannot be written in DNS form") from None


def check_egress(address: str) -> None:
    """Raise `ConfigError` (`config.policy_denied`) for an address that is never a data source."""
    candidate: Any = ipaddress.ip_address(address.split("%")[0])
    for ip in (candidate, *_embedded(candidate)):
        if any(ip.version == network.version and ip in network for network in _FORBIDDEN):
            raise ConfigError(
                f"connections to {address} are never allowed (link-local, metadata or multicast address)",
                code="config.policy_denied",
                field="host",
                hint="use the address of the data source itself",
            )


def _embedded(ip: Any) -> list[Any]:
    """IPv4 addresses inside an IPv6 one: mapped, 6to4, NAT64."""
    if ip.version == 4:
        return []
    found = [ip.ipv4_mapped, ip.sixtofour, *(ip.teredo or ())]
    if ip in _NAT64:
        found.append(ipaddress.IPv4Address(int(ip) & 0xFFFFFFFF))
    return [one for one in found if one is not None]


def resolve(host: str, port: int, deadline: Deadline | None = None) -> list[str]:
    """Return the addresses of a host, in the order to try them. Raises `SourceError` (`net.dns`), `ConfigError`.

    The system's resolver cannot be interrupted, so it runs in a thread of its own that is left behind when it hangs.
    """
    limit = (deadline or Deadline(None)).bounded(_DNS_S)
    answer: queue.SimpleQueue[list[str] | OSError] = queue.SimpleQueue()

    def ask() -> None:
        try:
            rows = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)
            answer.put(list(dict.fromkeys(str(row[4][0]) for row in rows)))
        except OSError as exc:
            answer.put(exc)
        except UnicodeError as exc:
            answer.put(OSError(str(exc)))

    threading.Thread(target=ask, name="hf-dns", daemon=True).start()
    try:
        outcome = answer.get(timeout=limit)
    except queue.Empty:
        raise SourceError(
            f"the name {host!r} could not be resolved within {limit:.0f} s", code="net.dns", hint="check the agent's DNS servers"
        ) from None
    if isinstance(outcome, OSError):
        raise SourceError(
            f"the host name {host!r} does not resolve",
            code="net.dns",
            hint="check the spelling, and that the agent's machine can resolve it",
            native={"text": str(outcome.strerror or outcome)},
        )
    for address in outcome:
        check_egress(address)
    return outcome


def dial(host: str, port: int, deadline: Deadline | None = None) -> tuple[socket.socket, list[dict[str, Any]]]:
    """Connect to the first address that answers; return the socket and what was tried.

    Raises `SourceError`: `net.refused`, `net.timeout`, `net.unreachable` or `net.reset` of the last attempt.
    """
    deadline = deadline or Deadline(_DIAL_S)
    tried: list[dict[str, Any]] = []
    failure: AgentError | None = None
    addresses = resolve(host, port, deadline)
    for position, address in enumerate(addresses):
        share = deadline.bounded(_DIAL_S) / (len(addresses) - position)
        started = time.perf_counter()
        try:
            connection = socket.create_connection((address, port), timeout=max(0.05, share))
        except OSError as exc:
            failure = dial_error(exc, host, port)
            tried.append({"address": address, "ms": _ms(started), "error": failure.code})
            continue
        tried.append({"address": address, "ms": _ms(started)})
        return connection, tried
    assert failure is not None
    failure.data = {"tried": tried}
    raise failure


def dial_error(error: OSError, host: str, port: int) -> AgentError:
    """Tell apart why a TCP connection failed."""
    where = f"{host}:{port}"
    if isinstance(error, ConnectionRefusedError):
        return SourceError(
            f"nothing listens on {where}", code="net.refused", hint="check the port, and that the server is running"
        )
    if isinstance(error, TimeoutError) or error.errno == errno.ETIMEDOUT:
        return SourceError(
            f"no answer from {where}", code="net.timeout", hint="a firewall may drop the packets: check host, port and routes"
        )
    if isinstance(error, ConnectionResetError | ConnectionAbortedError | BrokenPipeError):
        return SourceError(f"{where} cut the connection", code="net.reset", hint="check for a proxy or firewall in between")
    if error.errno in (errno.ENETUNREACH, errno.EHOSTUNREACH, errno.EADDRNOTAVAIL):
        return SourceError(f"there is no route to {where}", code="net.unreachable", hint="check the agent's network")
    return SourceError(f"{where} cannot be reached: {error.strerror or error}", code="net.unreachable")


def probe_dns(probe: Probe, host: str) -> None:
    """Stage `dns` of a connection test."""
    with probe.stage("dns") as stage:
        addresses = resolve(host, 0, probe.deadline)
        stage.details["addresses"] = addresses
        stage.message = f"{host} is {', '.join(addresses[:4])}"


def probe_tcp(probe: Probe, host: str, port: int) -> None:
    """Stage `tcp` of a connection test."""
    with probe.stage("tcp") as stage:
        connection, tried = dial(host, port, Deadline(probe.deadline.bounded(_DIAL_S)))
        connection.close()
        stage.details["tried"] = tried
        stage.message = f"{tried[-1]['address']} port {port}"


def check_certificate(pem: str, *, what: str = "certificate") -> dict[str, Any]:
    """Parse the first PEM certificate; return `{subject, not_after, expires_in_days}`.

    Raises `ConfigError`: `config.invalid` when it is none, `tls.expired` when it is out of date. The caller warns when
    `expires_in_days` is below 30.
    """
    from cryptography import x509

    try:
        certificate = x509.load_pem_x509_certificate(pem.encode())
    except ValueError as exc:
        raise ConfigError(
            f"the {what} is not a PEM certificate", hint="paste the text between and with the BEGIN and END lines"
        ) from exc
    left = certificate.not_valid_after_utc - datetime.now(UTC)
    if left < timedelta(0):
        raise ConfigError(
            f"the {what} expired on {certificate.not_valid_after_utc:%Y-%m-%d}", code="tls.expired", hint="replace it"
        )
    return {
        "subject": certificate.subject.rfc4514_string(),
        "not_after": certificate.not_valid_after_utc.isoformat(),
        "expires_in_days": left.days,
    }


def _ms(started: float) -> float:
    return round((time.perf_counter() - started) * 1000, 3)
