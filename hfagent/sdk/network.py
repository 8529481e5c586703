"""Hosts resolved within a limit, dialled the happy-eyeballs way, and told apart when they fail.

`resolve` checks every address it returns against the fixed refusals (`sdk/egress.py`): connect to one of these, never to the
name again. `dial` races the addresses (RFC 8305: a second one starts when the first has not answered for 250 ms), so a
dead IPv6 route costs a quarter of a second and not the whole limit.

Not here: TLS, proxies, tunnels, and what is said over a connection.
"""

from __future__ import annotations

import errno
import ipaddress
import os
import selectors
import socket
import threading
import time
from collections.abc import Sequence
from typing import Any, Final

from hfagent.foundation.clock import Deadline
from hfagent.foundation.errors import AgentError, SourceError
from hfagent.sdk.certificate import EXPIRY_WARNING_DAYS, check_certificate
from hfagent.sdk.egress import check_egress, validate_host
from hfagent.sdk.probe import Probe

__all__ = [
    "EXPIRY_WARNING_DAYS",
    "check_certificate",
    "check_egress",
    "dial",
    "dial_error",
    "probe_dns",
    "probe_tcp",
    "resolve",
    "socket_options",
    "validate_host",
]

DNS_S: Final = 5.0
DIAL_S: Final = 5.0
STAGGER_S: Final = 0.25
"""Head start of an address before the next one is tried beside it."""
_SURVEY_S: Final = 1.0
_STALE_LOOKUP_S: Final = 30.0

USER_TIMEOUT_MS: Final = 15_000
"""Silence for so long ends a connection: of sent bytes that nobody acknowledges (keep-alive probes do not run meanwhile),
and of an idle one since its last packet, once a probe has stayed without an answer. The one rule for every driver."""
KEEPALIVE_INTERVAL_S: Final = 5
KEEPALIVE_COUNT: Final = 3
"""Probes before the end, where the platform cannot limit silence: `USER_TIMEOUT_MS` in all."""


def socket_options(keepalive_s: int = 30) -> list[tuple[int, int, int]]:
    """Return `setsockopt` arguments that make a dead peer noticed, in silence and with bytes under way.

    `keepalive_s`: seconds of silence before the first probe. A peer that is gone without a word is noticed after
    `max(USER_TIMEOUT_MS, keepalive_s + KEEPALIVE_INTERVAL_S)` when nothing is under way. What the platform lacks is left out.
    """
    options = [(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1), (socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)]
    values = {
        "TCP_KEEPIDLE": keepalive_s,
        "TCP_KEEPINTVL": KEEPALIVE_INTERVAL_S,
        "TCP_KEEPCNT": KEEPALIVE_COUNT,
        "TCP_USER_TIMEOUT": USER_TIMEOUT_MS,
    }
    options += [(socket.IPPROTO_TCP, getattr(socket, k), v) for k, v in values.items() if hasattr(socket, k)]
    return options


# --- names ---


class _Lookup:
    """A question to the system's resolver, which cannot be interrupted: it runs in a thread that outlives its askers.

    All who ask for the same name share it, so a name service that hangs costs one thread a name and not one a request.
    """

    def __init__(self, host: str, port: int) -> None:
        self._host = host
        self._port = port
        self.started = time.monotonic()
        self.done = threading.Event()
        self.addresses: tuple[str, ...] = ()
        self.failure: str | None = None
        threading.Thread(target=self._ask, name="hf-dns", daemon=True).start()

    def _ask(self) -> None:
        try:
            rows = socket.getaddrinfo(self._host, self._port, type=socket.SOCK_STREAM)
            self.addresses = tuple(dict.fromkeys(str(row[4][0]) for row in rows))
        except OSError as exc:
            self.failure = exc.strerror or str(exc)
        except (UnicodeError, ValueError) as exc:
            self.failure = str(exc)
        finally:
            with _lookup_lock:
                if _lookups.get((self._host, self._port)) is self:
                    del _lookups[self._host, self._port]
            self.done.set()


_lookup_lock = threading.Lock()  # guards everything below
_lookups: dict[tuple[str, int], _Lookup] = {}


def resolve(host: str, port: int, deadline: Deadline | None = None) -> list[str]:
    """Return the numeric addresses of a host, in the order to try them; within five seconds.

    Raises `SourceError` (`net.dns`), and `ConfigError` (`config.policy_denied`) when any address is never allowed.
    """
    limit = (deadline or Deadline(None)).bounded(DNS_S)
    addresses = _numeric(host) or _looked_up(host, port, limit)
    for address in addresses:
        check_egress(address)
    return list(addresses)


def _numeric(host: str) -> tuple[str, ...]:
    try:
        return (str(ipaddress.ip_address(host)),)
    except ValueError:
        return ()


def _looked_up(host: str, port: int, limit: float) -> tuple[str, ...]:
    with _lookup_lock:
        lookup = _lookups.get((host, port))
        if lookup is None or time.monotonic() - lookup.started > _STALE_LOOKUP_S:
            lookup = _lookups[host, port] = _Lookup(host, port)
    if not lookup.done.wait(limit):
        raise SourceError(
            f"the host name {host!r} was not resolved within {limit:.1f} s",
            code="net.dns",
            hint="check the name servers of the agent's machine (/etc/resolv.conf)",
        )
    if lookup.failure is not None or not lookup.addresses:
        raise SourceError(
            f"the host name {host!r} does not resolve",
            code="net.dns",
            hint="check the spelling, and that the agent's machine can resolve it",
            native={"text": lookup.failure or "no address"},
        )
    return lookup.addresses


# --- connections ---


class _Try:
    """An attempt to connect to one address."""

    def __init__(self, address: str) -> None:
        self.address = address
        self.socket: socket.socket | None = None
        self.error: OSError | None = None
        self.ended = False
        self.ms = 0.0
        self._started = time.perf_counter()

    def start(self, port: int) -> None:
        self._started = time.perf_counter()
        family = socket.AF_INET6 if ":" in self.address else socket.AF_INET
        try:
            self.socket = socket.socket(family, socket.SOCK_STREAM)
            self.socket.setblocking(False)
            self.settle(self.socket.connect_ex((self.address, port)))
        except OSError as exc:  # the address family is switched off, or no descriptor is left
            self._end(exc)

    def settle(self, number: int) -> None:
        """Take an `errno` as the state of the attempt."""
        if number == 0:
            self._end(None)
        elif number != errno.EINPROGRESS:
            self._end(OSError(number, os.strerror(number)))

    def give_up(self) -> None:
        """Close; an attempt under way counts as unanswered."""
        self._end(TimeoutError(errno.ETIMEDOUT, os.strerror(errno.ETIMEDOUT)))

    def _end(self, error: OSError | None) -> None:
        if not self.ended:
            self.ended = True
            self.error = error
            self.ms = round((time.perf_counter() - self._started) * 1000, 3)
        if error is not None and self.socket is not None:
            self.socket.close()
            self.socket = None


def dial(host: str, port: int, deadline: Deadline | None = None) -> tuple[socket.socket, list[dict[str, Any]]]:
    """Connect to the first address that answers, within five seconds; return the (blocking) socket and what was tried.

    The list has `{address, ms, error?}` per address ; the last one is the connected one. Raises
    `SourceError`: `net.refused`, `net.timeout`, `net.unreachable`, `net.reset` (the most telling of the attempts;
    `data["tried"]` has all), or what `resolve` raises.
    """
    limit = Deadline((deadline or Deadline(None)).bounded(DIAL_S))
    addresses = resolve(host, port, limit)
    winner, tries = _race(addresses, port, limit)
    return _outcome(winner, tries, host, port)


def dial_error(error: OSError, host: str, port: int) -> AgentError:
    """Tell apart why a TCP connection failed, or broke."""
    where = f"[{host}]:{port}" if ":" in host else f"{host}:{port}"
    code = _code(error)
    if code == "net.refused":
        return SourceError(
            f"nothing listens on {where}", code=code, hint="check the port, and that the server is running"
        )
    if code == "net.timeout":
        return SourceError(
            f"no answer from {where}", code=code, hint="a firewall may drop the packets: check host, port and routes"
        )
    if code == "net.reset":
        return SourceError(f"{where} cut the connection", code=code, hint="check for a proxy or firewall in between")
    if error.errno in _NO_ROUTE:
        return SourceError(f"there is no route to {where}", code=code, hint="check the network of the agent's machine")
    reason = error.strerror or str(error) or type(error).__name__
    return SourceError(
        f"{where} cannot be reached: {reason}", code=code, hint="check the network of the agent's machine"
    )


_NO_ROUTE: Final = frozenset(
    {errno.ENETUNREACH, errno.EHOSTUNREACH, errno.EHOSTDOWN, errno.ENETDOWN, errno.EADDRNOTAVAIL}
)
_RESET: Final = frozenset({errno.ECONNRESET, errno.ECONNABORTED, errno.EPIPE, errno.ENOTCONN, errno.ESHUTDOWN})
_TELLING: Final = ("net.refused", "net.reset", "net.unreachable", "net.timeout")
"""What one address says about the server, most telling first."""


def _code(error: OSError) -> str:
    if isinstance(error, ConnectionRefusedError):
        return "net.refused"
    if isinstance(error, TimeoutError) or error.errno == errno.EAGAIN:
        return "net.timeout"
    if error.errno in _RESET or isinstance(error, ConnectionError):
        return "net.reset"
    return "net.unreachable"


def _outcome(
    winner: _Try | None, tries: Sequence[_Try], host: str, port: int
) -> tuple[socket.socket, list[dict[str, Any]]]:
    tried = _told(tries, winner)
    if winner is not None and winner.socket is not None:
        winner.socket.setblocking(True)
        return winner.socket, tried
    errors = [one.error for one in tries if one.error is not None]
    error = min(errors, key=lambda e: _TELLING.index(_code(e)), default=None) or TimeoutError()
    failure = dial_error(error, host, port)
    failure.data = {"tried": tried}
    raise failure from error


def _told(tries: Sequence[_Try], winner: _Try | None) -> list[dict[str, Any]]:
    ordered = sorted(tries, key=lambda one: (one is winner, one.error is None))
    return [
        {"address": one.address, "ms": one.ms} | ({} if one.error is None else {"error": _code(one.error)})
        for one in ordered
    ]


def _race(
    addresses: Sequence[str], port: int, deadline: Deadline, *, survey_s: float = 0.0
) -> tuple[_Try | None, list[_Try]]:
    """Connect to the addresses, a quarter of a second apart, until one answers. With `survey_s`, then also try the rest
    for so long, to know about them. Return the winner and all attempts that were started, closed but for the winner.
    """
    waiting = _interleaved(addresses)
    tries: list[_Try] = []
    winner: _Try | None = None
    limit = deadline
    turn = time.monotonic()
    with selectors.DefaultSelector() as selector:
        while (waiting or selector.get_map()) and not limit.expired():
            if waiting and (time.monotonic() >= turn or not selector.get_map() or winner is not None):
                one = _Try(waiting.pop(0))
                tries.append(one)
                one.start(port)
                turn = time.monotonic() + STAGGER_S
                if not one.ended and one.socket is not None:
                    selector.register(one.socket, selectors.EVENT_WRITE, one)
            else:
                pause = limit.bounded(max(0.0, turn - time.monotonic()) if waiting else 3600.0)
                for key, _ in selector.select(pause):
                    connecting: _Try = key.data
                    selector.unregister(key.fileobj)
                    assert connecting.socket is not None
                    connecting.settle(connecting.socket.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR))
            if winner is None:
                winner = next((one for one in tries if one.ended and one.error is None), None)
                if winner is not None:
                    if not survey_s:
                        break
                    limit = Deadline(deadline.bounded(survey_s))
    for one in tries:
        if one is not winner and (not one.ended or one.socket is not None):
            _put_away(one)
    return winner, [one for one in tries if survey_s or one is winner or one.error is not None]


def _put_away(one: _Try) -> None:
    if one.ended and one.socket is not None:  # connected as well, but late
        one.socket.close()
        one.socket = None
    else:
        one.give_up()


def _interleaved(addresses: Sequence[str]) -> list[str]:
    """The resolver's order, with the families taking turns (RFC 8305 §4)."""
    first = [a for a in addresses if (":" in a) == (":" in addresses[0])]
    second = [a for a in addresses if a not in first]
    mixed = [one for pair in zip(first, second, strict=False) for one in pair]
    return mixed + [a for a in addresses if a not in mixed]


# --- stages of a connection test ---


def probe_dns(probe: Probe, host: str) -> None:
    """Stage `dns` of a connection test."""
    with probe.stage("dns") as stage:
        addresses = resolve(host, 0, probe.deadline)
        stage.details["addresses"] = addresses
        more = f" and {len(addresses) - 4} more" if len(addresses) > 4 else ""
        stage.message = f"{host} is {', '.join(addresses[:4])}{more}"


def probe_tcp(probe: Probe, host: str, port: int) -> None:
    """Stage `tcp` of a connection test: tries every address, and warns when one protocol family is dead."""
    with probe.stage("tcp") as stage:
        limit = Deadline(probe.deadline.bounded(DIAL_S))
        winner, tries = _race(resolve(host, port, limit), port, limit, survey_s=_SURVEY_S)
        stage.details["tried"] = _told(tries, winner)
        connection, _ = _outcome(winner, tries, host, port)
        connection.close()
        assert winner is not None
        stage.message = f"{winner.address} port {port} answers"
        for version, prefix in ((6, "IPv6"), (4, "IPv4")):
            family = [one for one in tries if ipaddress.ip_address(one.address).version == version]
            dead = [one for one in family if one.error is not None]
            if dead and len(dead) == len(family) and not ipaddress.ip_address(dead[0].address).is_loopback:
                assert dead[0].error is not None
                stage.warn(
                    _code(dead[0].error),
                    f"{host} also has the {prefix} address {dead[0].address}, which does not answer",
                    "remove the address from the name service, or mend its route: every connection tries it",
                )
