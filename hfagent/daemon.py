"""The composition root: the one place that builds the agent's parts and hands them to each other.

One daemon per data directory, held by a lock file. Order of start: lock, log, store, vault, services, sockets, ready. Order
of stop: no new work, running requests finish or are cancelled, results and pools close, store closes, lock goes.
"""

from __future__ import annotations

import asyncio
import contextlib
import fcntl
import logging
import os
import resource
import signal
import sys
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from hfagent import __version__
from hfagent.foundation import logs
from hfagent.foundation.atomic import make_private_directory
from hfagent.foundation.errors import AgentError, ConfigError, Conflict, InternalError
from hfagent.foundation.notify import notify
from hfagent.foundation.paths import AgentPaths
from hfagent.foundation.redaction import redact
from hfagent.model.settings import Settings
from hfagent.protocol import agent as protocol
from hfagent.sdk.registry import Registry
from hfagent.server.greeting import AgentInfo
from hfagent.server.handlers.agent import agent_handlers
from hfagent.server.handlers.connectors import connectors_handlers
from hfagent.server.handlers.query import query_handlers
from hfagent.server.handlers.vault import vault_handlers
from hfagent.server.server import Server
from hfagent.services.apply import Apply, DirectoryWatch
from hfagent.services.configuration import RESTART_NEEDED, changed_settings, load_settings
from hfagent.services.connections import Connections
from hfagent.services.connectors import Connectors
from hfagent.services.context import CallContext
from hfagent.services.credentials import Credentials
from hfagent.services.discovery import Discovery
from hfagent.services.health import Health
from hfagent.services.policy import Policy
from hfagent.services.query import Query
from hfagent.services.vault import VaultVerbs
from hfagent.services.workers import Workers
from hfagent.store.store import Store
from hfagent.transport.activation import inherited_sockets
from hfagent.vault.process import protect_memory
from hfagent.vault.settings import VaultSettings
from hfagent.vault.vault import Vault

__all__ = ["Daemon", "DaemonOptions", "run"]

_log = logging.getLogger(__name__)

_TICK_S = 60.0
_APPLY_S = 3.0
"""How long the start waits for connectors-as-code files to be applied."""
_CLOSE_S = 3.0
_DESCRIPTORS = 16_384
"""Open files that the agent asks for: many sources and clients, whatever the shell's limit is."""


@dataclass(frozen=True)
class DaemonOptions:
    """How a daemon was asked to run."""

    paths: AgentPaths
    flags: dict[str, Any] = field(default_factory=dict)
    """Settings given on the command line, by dotted name."""
    ready_fd: int | None = None
    """A pipe that hears `ready` when the daemon accepts connections (auto-start)."""

    @property
    def auto_started(self) -> bool:
        """Whether a client started this daemon for itself and others."""
        return self.ready_fd is not None


def run(options: DaemonOptions) -> int:
    """Run a daemon until it is told to stop; return the exit code: 0, or 1 when it could not start or broke off."""
    logs.set_up(format=str(options.flags.get("log.format", "auto")))  # until the settings are read
    _harden()
    paths = options.paths
    try:
        with _reporting(f"the data directory {paths.data_dir} cannot be used"):
            make_private_directory(paths.data_dir)
        settings = _settings(options)
        with _reporting(f"the log file {paths.log_file} cannot be used"):
            _set_up_logs(options, settings)
        with _Lock(paths.lock_file):
            return asyncio.run(_serve(options, settings))
    except AgentError as exc:
        if options.auto_started or os.environ.get("JOURNAL_STREAM"):  # elsewhere the words below are enough
            _log.critical("not started: %s (%s)", exc.message, exc.hint or "no remedy known")
        _say(options, exc.message, exc.hint)
        return 1
    except Exception as exc:  # noqa: BLE001  the last place where it can be told, redacted
        _log.critical("the agent broke off", exc_info=exc)
        _say(options, f"a defect in the agent: {type(exc).__name__}: {exc}", "its log has the details")
        return 1
    finally:
        logging.shutdown()


def _settings(options: DaemonOptions) -> Settings:
    """Read the settings. A file that somebody named has to be there: it may hold the policy."""
    file = options.paths.config_file
    if "--config" in options.paths.arguments() and not file.exists():
        raise ConfigError(f"the configuration file {file} does not exist", hint="correct --config or HFAGENT_CONFIG")
    return load_settings(file, flags=options.flags)


def _say(options: DaemonOptions, message: str, hint: str | None) -> None:
    """Tell whoever started us: on standard error, and the client that waits at the other end of the pipe."""
    text = redact(message)
    sys.stderr.write(f"Error: {text}\n" + (f"Try:   {redact(hint)}\n" if hint else ""))
    if options.ready_fd is not None:
        with contextlib.suppress(OSError):
            os.write(options.ready_fd, f"{text}{f'; {redact(hint)}' if hint else ''}\n".encode())


@contextlib.contextmanager
def _reporting(what: str) -> Iterator[None]:
    try:
        yield
    except PermissionError as exc:
        if exc.filename is None:  # our own words, with the remedy in them
            problem, _, remedy = str(exc).partition(": ")
            raise ConfigError(f"{what}: {problem}", hint=remedy or "choose another --data-dir") from exc
        raise ConfigError(f"{what}: {exc.strerror}", hint="check its owner, or choose another --data-dir") from exc
    except (FileExistsError, NotADirectoryError) as exc:
        raise ConfigError(f"{what}: {exc.filename} is not a directory", hint="choose another --data-dir") from exc
    except OSError as exc:
        raise ConfigError(f"{what}: {exc.strerror or exc}", hint="choose another --data-dir") from exc


async def _serve(options: DaemonOptions, settings: Settings) -> int:
    daemon = Daemon(options, settings)
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, daemon.stop)
    loop.add_signal_handler(signal.SIGHUP, daemon.reload_soon)
    try:
        await daemon.start()
        await daemon.wait()
    finally:
        await daemon.close()
    return 0


class Daemon:
    """The agent, assembled. Also the service behind `agent/*`: these verbs are about the assembly itself."""

    def __init__(self, options: DaemonOptions, settings: Settings) -> None:
        self.options = options
        self.paths = options.paths
        self.settings = settings
        self.policy = Policy(settings.policy, data_dir=self.paths.data_dir)
        self._started_at = datetime.now(UTC)
        self._started = time.monotonic()
        self._stop = asyncio.Event()
        self._hurry = asyncio.Event()
        self._drain_s = settings.server.drain_s
        self._last_activity = time.monotonic()
        self._tasks: set[asyncio.Task[Any]] = set()
        self._tick: asyncio.TimerHandle | None = None
        self._watchdog: asyncio.TimerHandle | None = None
        self._server: Server | None = None
        self._closed = False
        self.tcp_addresses: list[tuple[str, int]] = []

        self.workers = Workers()
        self.registry = Registry()
        self.store = Store.open(self.paths.store_file)
        try:
            self._assemble()
        except BaseException:
            self.store.close()
            raise

    def _assemble(self) -> None:
        settings, store_lane = self.settings, self.workers.lane("store", threads=2)
        license_file = settings.vault.license_file
        self.vault = Vault.open_or_create(
            self.paths.vault_dir,
            agent_id=self.store.agent_id,
            has_ciphertexts=self.store.secrets.any,
            settings=VaultSettings(
                key_source=settings.vault.key_source,
                license_key_file=Path(license_file).expanduser() if license_file else None,
            ),
        )
        self.credentials = Credentials(self.vault, self.store, cache_s=lambda: self.settings.vault.secret_cache_s)
        self.connections = Connections(self.registry, self.credentials, lambda: self.policy, self.workers, self.paths)
        self.connectors = Connectors(
            self.registry, self.store, self.credentials, self.connections, lambda: self.policy, self.workers, store_lane
        )
        self.discovery = Discovery(self.connectors, self.connections, self.store, self.workers, store_lane)
        self.query = Query(
            self.connectors, self.connections, self.workers, lambda: self.settings.query, lambda: self.policy
        )
        self.vault_verbs = VaultVerbs(self.credentials, self.connections, self.store, self.registry, self.workers)
        self.apply = Apply(self.connectors)
        self.watch = DirectoryWatch(
            self.paths.connectors_dir, self.apply, self.workers, lambda: CallContext("connectors.d")
        )
        self.health = Health(
            self.paths,
            lambda: self.settings,
            self.store,
            self.vault_verbs,
            self.connectors,
            self.registry,
            self.watch,
            self.workers,
            store_lane,
            flags=self.options.flags,
        )

    # --- life ---

    async def start(self) -> None:
        """Open the sockets and say that we are ready."""
        handlers = {
            **agent_handlers(self),
            **connectors_handlers(self.connectors, self.discovery, self.connections, self.apply),
            **query_handlers(self.query),
            **vault_handlers(self.vault_verbs),
        }
        self._server = server = Server(
            handlers,
            info=AgentInfo(log=str(self.paths.log_file) if self.options.auto_started else None),
            guests=frozenset(self.settings.server.allowed_uids),
            on_open=lambda _session: self._touch(),
            on_close=self._session_closed,
        )
        handed_over = inherited_sockets()
        for listener in handed_over:
            await server.listen_socket(listener)
        if not handed_over:
            await server.listen_unix(self.paths.socket)
        port = self.settings.server.tcp_port
        if port is not None:
            self.tcp_addresses = await server.listen_tcp("localhost", port, token_file=self.paths.token_file)
        if self.settings.watch_connectors:
            await self.watch.start()
        self._spawn(self.vault_verbs.resume())
        self._schedule_tick()
        self._feed_watchdog()
        if self.vault.locked:
            _log.warning("the vault is locked: %s", self.vault.status().reason)
        where = ", ".join([str(self.paths.socket), *(f"{host}:{port}" for host, port in self.tcp_addresses)])
        _log.info("hfagent %s ready on %s (data in %s)", __version__, where, self.paths.data_dir)
        notify("READY=1", f"STATUS=Ready on {where}")
        self._report_ready()

    async def wait(self) -> None:
        """Return when somebody asked to stop."""
        await self._stop.wait()

    def stop(self) -> None:
        """Ask to stop; asked again, running requests are cancelled at once. Safe in a signal handler of the loop."""
        if self._stop.is_set():
            self._hurry.set()
        self._stop.set()

    async def close(self) -> None:
        """Drain and close everything in order. Safe to repeat."""
        if self._closed:
            return
        self._closed = True
        notify("STOPPING=1", "STATUS=Draining")
        for handle in (self._tick, self._watchdog):
            if handle is not None:
                handle.cancel()
        self.watch.stop()
        if self._server is not None:
            await self._drain(self._server)
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(_CLOSE_S):
                await self.query.close_all()
        if self._server is not None:
            await self._server.close()
        for task in list(self._tasks):
            task.cancel()
        with contextlib.suppress(TimeoutError):  # a driver that hangs in saying good-bye is left behind
            async with asyncio.timeout(_CLOSE_S):
                await self.workers.apart(self.connections.close)
        self.workers.close()
        self.store.close()
        _log.info("stopped")

    async def _drain(self, server: Server) -> None:
        """Let running requests finish, for a while or until somebody is in a hurry."""
        draining = asyncio.ensure_future(server.drain(self._drain_s))
        hurry = asyncio.ensure_future(self._hurry.wait())
        await asyncio.wait({draining, hurry}, return_when=asyncio.FIRST_COMPLETED)
        hurry.cancel()
        if not draining.done():
            for session in server.sessions:
                session.cancel_all()
        if not await draining:
            _log.warning("some requests did not finish within %g s and were cancelled", self._drain_s)

    # --- agent/* ---

    async def status(self, call: CallContext, params: protocol.StatusParams) -> protocol.StatusResult:
        """Describe the daemon."""
        by_status = await self.connectors.count_by_status()
        vault = await self.vault_verbs.status(quick=True)
        problems = await self.health.problems()
        return protocol.StatusResult(
            build=__version__,
            protocol=protocol.PROTOCOL_VERSION,
            pid=os.getpid(),
            started_at=self._started_at.isoformat(timespec="seconds").replace("+00:00", "Z"),
            uptime_s=round(time.monotonic() - self._started, 1),
            data_dir=str(self.paths.data_dir),
            socket=str(self.paths.socket),
            config_file=str(self.paths.config_file) if self.paths.config_file.exists() else None,
            log=str(self.paths.log_file) if self.options.auto_started else None,
            state="draining" if self._stop.is_set() else "ready",
            vault=vault["state"],
            connectors=sum(by_status.values()),
            connectors_by_status=by_status,
            sessions=len(self.server.sessions),
            open_queries=self.query.open_count,
            open_connections=self.connections.open_connections(),
            rss_bytes=_rss_bytes(),
            threads=threading.active_count(),
            problems=tuple(
                {"name": p.name, "status": p.status, "message": p.message, "hint": p.hint} for p in problems
            ),
        )

    async def doctor(self, call: CallContext, params: protocol.DoctorParams) -> protocol.DoctorResult:
        """Run every check."""
        findings = await self.health.doctor(call, connectors=params.connectors)
        checks = tuple(
            protocol.Check(name=f.name, status=f.status, message=f.message, hint=f.hint, details=f.details)
            for f in findings
        )
        return protocol.DoctorResult(ok=all(check.status != "error" for check in checks), checks=checks)

    async def sessions(self, call: CallContext, params: protocol.SessionsParams) -> protocol.SessionsResult:
        """List the connected clients."""
        return protocol.SessionsResult(sessions=self.server.session_infos(self.query.open_of))

    async def shutdown(self, call: CallContext, params: protocol.ShutdownParams) -> protocol.Done:
        """Stop after this answer."""
        self._drain_s = params.drain_s
        _log.info("stopping: asked by %s", call.actor)
        asyncio.get_running_loop().call_later(0.05, self.stop)
        return protocol.Done()

    async def reload(self, call: CallContext, params: protocol.ReloadParams) -> protocol.ReloadResult:
        """Read the configuration again; a broken file changes nothing."""
        fresh = await self.workers.apart(lambda: _settings(self.options))
        changed = changed_settings(self.settings, fresh)
        self.settings = fresh
        self.policy = Policy(fresh.policy, data_dir=self.paths.data_dir)
        self._drain_s = fresh.server.drain_s
        logging.getLogger().setLevel(logs.level_number(fresh.log.level))
        self.credentials.forget_references()
        # The policy, and what references lead to, hold from the next use on.
        policy_changed = any(name.startswith("policy.") for name in changed)
        self.connections.drop_all(only_references=not policy_changed)
        _log.info("configuration read again: %s", ", ".join(changed) or "nothing changed")
        return protocol.ReloadResult(
            changed=changed, restart_needed=tuple(name for name in changed if name in RESTART_NEEDED)
        )

    def reload_soon(self) -> None:
        """Reload because of SIGHUP; a failure is logged, the old configuration stays."""

        async def work() -> None:
            notify("RELOADING=1", f"MONOTONIC_USEC={time.monotonic_ns() // 1000}")
            try:
                await self.reload(CallContext("signal"), protocol.ReloadParams())
            except AgentError as exc:
                _log.error(
                    "the configuration was not reloaded: %s (%s)", exc.message, exc.hint or "the old one stays in force"
                )
            notify("READY=1")

        self._spawn(work())

    # --- inside ---

    @property
    def server(self) -> Server:
        """The server, once started."""
        if self._server is None:
            raise InternalError("the server is not started yet")
        return self._server

    def _session_closed(self, session_id: str) -> None:
        self._touch()
        self._spawn(self.query.session_closed(session_id))

    def _touch(self) -> None:
        self._last_activity = time.monotonic()

    def _schedule_tick(self) -> None:
        """One wake-up a minute does all the housekeeping; a shorter idle limit makes it as short as needed."""
        idle = self.settings.server.idle_timeout_s
        seconds = min(_TICK_S, max(0.2, idle / 2)) if idle else _TICK_S
        self._tick = asyncio.get_running_loop().call_later(seconds, self._on_tick)

    def _on_tick(self) -> None:
        self._schedule_tick()  # first: whatever goes wrong below, housekeeping goes on
        self.connections.evict()
        self._spawn(self.query.close_idle())
        idle = self.settings.server.idle_timeout_s
        if self.server.sessions or self.query.open_count or self.server.in_flight or self.discovery.running:
            self._touch()
        elif idle and time.monotonic() - self._last_activity >= idle:
            _log.info("stopping: nobody was here for %g s", idle)
            self.stop()

    def _feed_watchdog(self) -> None:
        """Feed systemd's watchdog from the loop itself, so that a blocked loop is seen."""
        period = os.environ.get("WATCHDOG_USEC", "")
        if not period.isdigit() or os.environ.get("WATCHDOG_PID", str(os.getpid())) != str(os.getpid()):
            return
        notify("WATCHDOG=1")
        self._watchdog = asyncio.get_running_loop().call_later(int(period) / 2_000_000, self._feed_watchdog)

    def _spawn(self, work: Any) -> None:
        task = asyncio.get_running_loop().create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._task_done)

    def _task_done(self, task: asyncio.Task[Any]) -> None:
        self._tasks.discard(task)
        if not task.cancelled() and (error := task.exception()) is not None:
            _log.error("background work failed", exc_info=error)

    def _report_ready(self) -> None:
        descriptor = self.options.ready_fd
        if descriptor is None:
            return
        try:
            os.write(descriptor, b"ready\n")
        except BrokenPipeError:
            _log.info("the client that started this agent is gone")
        finally:
            os.close(descriptor)


class _Lock:
    """The lock file of a data directory: held by the one daemon that uses it, released by the kernel when that dies."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._descriptor = -1

    def __enter__(self) -> None:
        with _reporting(f"the lock file {self._path} cannot be used"):
            self._descriptor = os.open(self._path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
        try:
            fcntl.flock(self._descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            holder = os.pread(self._descriptor, 32, 0).decode("ascii", "replace").strip() or "unknown"
            os.close(self._descriptor)
            raise Conflict(
                f"another agent (pid {holder}) uses the data directory {self._path.parent}",
                code="connector.conflict",
                hint="use that one, stop it with hfagent stop, or choose another --data-dir",
            ) from None
        os.ftruncate(self._descriptor, 0)
        os.pwrite(self._descriptor, f"{os.getpid()}\n".encode(), 0)

    def __exit__(self, *details: object) -> None:
        os.close(self._descriptor)


def _harden() -> None:
    """Nothing open to others, no core dumps, no reading of our memory by other processes of the same user.

    And as many open files as we may have: every client and every connection is one, whatever the shell's limit is.
    """
    os.umask(0o077)
    protect_memory()
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = _DESCRIPTORS if hard == resource.RLIM_INFINITY else min(hard, _DESCRIPTORS)
    if soft != resource.RLIM_INFINITY and soft < wanted:
        resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))


def _set_up_logs(options: DaemonOptions, settings: Settings) -> None:
    # An auto-started daemon logs to its file, rotated; its stderr is that file, too, for what comes before and after.
    file = options.paths.log_file if options.auto_started else None
    logs.set_up(level=settings.log.level, format=settings.log.format, file=file, max_bytes=settings.log.max_bytes)


def _rss_bytes() -> int:
    fields = Path("/proc/self/statm").read_text(encoding="ascii").split()
    return int(fields[1]) * resource.getpagesize()
