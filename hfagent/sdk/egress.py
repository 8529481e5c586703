"""Where a connector may point: host names in their canonical form, and addresses that are never a data source.

Names are checked before they reach a driver, because some drivers read more than a name into a host (a list, a path, a
whole connection string). Addresses are checked after resolving, because any name may lead to any address; whoever connects
must use the checked address, not look the name up again.

Loopback and private networks are ordinary for an agent that sits beside the data; which hosts are allowed beyond the
fixed refusals is the local policy's business (`services/policy.py`).
"""

from __future__ import annotations

import ipaddress
import re
from typing import Final

from hfagent.foundation.errors import ConfigError

__all__ = ["check_egress", "validate_host"]

Address = ipaddress.IPv4Address | ipaddress.IPv6Address

_LABEL: Final = re.compile(r"[A-Za-z0-9_](?:[A-Za-z0-9_-]{0,61}[A-Za-z0-9_])?")
_SEPARATORS: Final = frozenset("/,@=?#\\%:;|<>\"'`{}()[]&$")
_AMBIGUOUS: Final = frozenset("ßς\u200c\u200d")
"""The two editions of IDNA turn these into different names: a password could go to a stranger's server."""

_FORBIDDEN: Final = tuple(
    ipaddress.ip_network(text)
    for text in (
        "0.0.0.0/8",  # "this host": reaches loopback by another name
        "169.254.0.0/16",  # link-local; metadata services of most clouds
        "100.100.100.200/32", "192.0.0.192/32", "168.63.129.16/32",  # those of Alibaba, Oracle, Azure
        "224.0.0.0/4", "255.255.255.255/32",
        "::/128", "fe80::/10", "ff00::/8",
        "fd00:ec2::254/128",  # Amazon's, over IPv6
    )
)  # fmt: skip
_V4_IN_LAST_BITS: Final = tuple(
    ipaddress.IPv6Network(text) for text in ("::/96", "64:ff9b::/96", "64:ff9b:1::/48", "::ffff:0:0:0/96")
)
"""IPv4-compatible, NAT64 (well-known and local) and IPv4-translated addresses end in an IPv4 address."""
_ISATAP: Final = frozenset({0x00005EFE, 0x02005EFE})


def validate_host(text: str, *, allow_list: bool = False, allow_directory: bool = False) -> str:
    """Return a host name (IDNA, lower case) or address in its canonical form. Raises `ValueError` saying what is wrong.

    `allow_list` permits a comma-separated list (failover), `allow_directory` an absolute socket directory.
    """
    if allow_list and "," in text:
        return ",".join(validate_host(part, allow_directory=allow_directory) for part in text.split(","))
    if allow_directory and text.startswith("/"):
        if any(ord(char) < 32 or char in ",=@" for char in text):
            raise ValueError("a socket directory cannot contain commas, '=', '@' or control characters")
        return text
    host = text.strip(" ")
    if not host:
        raise ValueError("a host is a name or an address, not empty")
    if (address := _literal(host)) is not None:
        return address
    for char in host:
        if char in _SEPARATORS or char.isspace() or (not char.isprintable() and char not in _AMBIGUOUS):
            raise ValueError(_complaint(char))
    return _name(host)


def check_egress(address: str) -> None:
    """Raise `ConfigError` (`config.policy_denied`) for an address that is never a data source.

    `address` is a numeric address, as a resolver gives it; an IPv4 address inside an IPv6 one counts as itself.
    """
    try:
        candidate: Address = ipaddress.ip_address(address.split("%")[0])
    except ValueError as exc:
        raise ConfigError(f"{address!r} is not a numeric address", field="host") from exc
    for ip in (candidate, *_embedded(candidate)):
        if any(ip in network for network in _FORBIDDEN if network.version == ip.version):
            raise ConfigError(
                f"connections to {address} are never allowed (link-local, metadata, multicast or unspecified address)",
                code="config.policy_denied",
                field="host",
                hint="use the address of the data source itself",
            )


def _literal(host: str) -> str | None:
    """The canonical form of a numeric address, in brackets or not; None for anything else."""
    inner = host[1:-1] if host.startswith("[") and host.endswith("]") else host
    try:
        return str(ipaddress.ip_address(inner))
    except ValueError:
        return None


def _complaint(char: str) -> str:
    if char == ":":
        return "a host does not contain a port or a scheme; there is a field for the port"
    shown = repr(char) if char.isprintable() and not char.isspace() else "blanks or control characters"
    return f"a host is a name or an address, without {shown}"


def _name(host: str) -> str:
    if not host.isascii():
        if any(char in _AMBIGUOUS for char in host):
            raise ValueError("write this host name in its DNS form (xn--…): its spelling is ambiguous")
        try:
            host = host.encode("idna").decode("ascii")
        except UnicodeError:
            raise ValueError("the host name cannot be written in DNS form") from None
        if (address := _literal(host)) is not None:  # full-width digits become ordinary ones
            return address
    bare = host.removesuffix(".")
    if len(bare) > 253 or not all(_LABEL.fullmatch(label) for label in bare.split(".")):
        raise ValueError("a host name has parts of 1 to 63 letters, digits, '-' or '_', joined by dots")
    return host.lower()


def _embedded(ip: Address) -> list[Address]:
    """IPv4 addresses inside an IPv6 one."""
    if isinstance(ip, ipaddress.IPv4Address) or ip in (ipaddress.IPv6Address("::1"), ipaddress.IPv6Address("::")):
        return []
    found: list[Address | None] = [ip.ipv4_mapped, ip.sixtofour, *(ip.teredo or ())]
    number = int(ip)
    if any(ip in network for network in _V4_IN_LAST_BITS) or (number >> 32) & 0xFFFFFFFF in _ISATAP:
        found.append(ipaddress.IPv4Address(number & 0xFFFFFFFF))
    return [one for one in found if one is not None]
