"""Everything that can be wrong with an agent, in one table; `doctor` checks it, `status` shows what is wrong now.

No other place invents warnings. Each check names what it found and, when that is not good, the remedy.
"""

from __future__ import annotations

import asyncio
import os
import platform
import resource
import shlex
import shutil
import sys
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any, Literal

from hfagent import __version__
from hfagent.foundation.clock import SYSTEM_CLOCK, Clock
from hfagent.foundation.errors import AgentError
from hfagent.foundation.paths import AgentPaths
from hfagent.model.connector import Connector
from hfagent.model.settings import Settings
from hfagent.sdk.registry import Registry
from hfagent.services.apply import DirectoryWatch
from hfagent.services.configuration import changed_settings, load_settings
from hfagent.services.connectors import Connectors
from hfagent.services.context import CallContext
from hfagent.services.vault import VaultVerbs
from hfagent.services.workers import Lane, Workers
from hfagent.store.store import Store

__all__ = ["Finding", "Health"]

Status = Literal["ok", "warning", "error", "info"]

_LOW_DISK = 500 * 1024 * 1024
_LOW_DESCRIPTORS = 1024
_TESTS_AT_A_TIME = 8


@dataclass(frozen=True)
class Finding:
    """One line of the doctor's list."""

    name: str
    status: Status
    message: str
    hint: str | None = None
    details: dict[str, Any] = field(default_factory=dict)


class Health:
    """Checks of this agent and its surroundings."""

    def __init__(
        self,
        paths: AgentPaths,
        settings: Callable[[], Settings],
        store: Store,
        vault: VaultVerbs,
        connectors: Connectors,
        registry: Registry,
        watch: DirectoryWatch,
        workers: Workers,
        store_lane: Lane,
        *,
        flags: Mapping[str, Any] | None = None,
        clock: Clock = SYSTEM_CLOCK,
    ) -> None:
        """`flags` are the settings of the command line, as `load_settings` takes them."""
        self._paths = paths
        self._flags = flags
        self._clock = clock
        self._settings = settings
        self._store = store
        self._vault = vault
        self._connectors = connectors
        self._registry = registry
        self._watch = watch
        self._workers = workers
        self._lane = store_lane

    async def doctor(self, call: CallContext, *, connectors: bool = False) -> list[Finding]:
        """Run every check. With `connectors` each active connector is tested too."""
        call.progress({"kind": "begin", "title": "Doctor", "cancellable": True})
        findings = await self._workers.apart(lambda: list(self._local()))
        findings += await self._vault_findings()
        findings += await self._connector_findings(call, test=connectors)
        call.progress({"kind": "end", "message": f"{len(findings)} checks"})
        return findings

    async def problems(self) -> list[Finding]:
        """What is wrong right now, cheaply: for `status`."""
        found = await self._workers.call(self._lane, lambda: list(self._current()))
        found += await self._vault_findings(quick=True)
        return [finding for finding in found if finding.status in ("warning", "error")]

    # --- checks that only look at this machine (blocking) ---

    def _local(self) -> Iterator[Finding]:
        yield Finding(
            "version", "info", f"hfagent {__version__}, Python {platform.python_version()}, {platform.platform()}",
            details={"executable": sys.executable, "pid": os.getpid()},
        )  # fmt: skip
        yield from _check_private(self._paths.data_dir, "data directory", directory=True)
        yield from _check_disk(self._paths)
        for path, what in ((self._paths.vault_dir, "vault directory"), (self._paths.log_file.parent, "log directory")):
            if path.exists():
                yield from _check_private(path, what, directory=True)
        yield from self._check_store()
        yield from self._check_clock()
        yield from self._check_config()
        yield from _check_socket(self._paths.socket)
        yield from _check_limits()
        yield from _check_environment()
        yield from self._check_drivers()
        yield from self._check_files()

    def _current(self) -> Iterator[Finding]:
        yield from _check_disk(self._paths)
        status = self._store.status()
        if status.disk_full:
            yield Finding("store", "error", "the disk is full", f"free some space on the file system of {status.path}")
        yield from self._check_files()

    def _check_store(self) -> Iterator[Finding]:
        status = self._store.status()
        details = {"path": str(status.path), "bytes": status.bytes, "sqlite": status.sqlite_version}
        complaints = self._store.check()
        if complaints:
            hint = "stop the agent and restore the data directory from a backup"
            yield Finding("store", "error", f"damaged: {complaints[0]}", hint, details)
        elif status.disk_full:
            hint = f"free some space on the file system of {status.path}"
            yield Finding("store", "error", "the disk is full", hint, details)
        else:
            text = f"intact, {status.bytes / 1024:,.0f} KiB, SQLite {status.sqlite_version}"
            yield Finding("store", "ok", text, details=details)
        for warning in status.warnings:
            yield Finding("store", "warning", warning, "move the data directory to a local disk (--data-dir)")

    def _check_clock(self) -> Iterator[Finding]:
        now, made = self._clock.now(), datetime.fromisoformat(self._store.created_at)
        text = now.isoformat(timespec="seconds").replace("+00:00", "Z")
        if now < made - timedelta(minutes=5):
            yield Finding(
                "clock", "error", f"it says {text}, which is before this agent was made ({made:%Y-%m-%d})",
                "set the machine's clock (timedatectl set-ntp true)",
            )  # fmt: skip
        else:
            yield Finding("clock", "ok", text)

    def _check_config(self) -> Iterator[Finding]:
        file = self._paths.config_file
        if not file.exists():
            yield Finding("configuration", "ok", f"defaults ({file} does not exist)")
            return
        try:
            fresh = load_settings(file, flags=self._flags)
        except AgentError as exc:
            yield Finding("configuration", "error", exc.message, exc.hint or f"mend {file}, then: hfagent reload")
            return
        if changed := changed_settings(self._settings(), fresh):
            yield Finding(
                "configuration", "warning", f"{file} was changed since it was read: {', '.join(changed)}",
                "run: hfagent reload (or restart the agent)",
            )  # fmt: skip
            return
        if file.stat().st_mode & 0o022:
            yield Finding(
                "configuration", "warning", f"{file} can be changed by other users", f"run: chmod go-w {file}"
            )  # fmt: skip
            return
        yield Finding("configuration", "ok", str(file))

    def _check_drivers(self) -> Iterator[Finding]:
        used = {record.type for record in self._store.connectors.list()}
        classes = self._registry.all()
        for name, reason in self._registry.broken.items():
            yield Finding(
                f"connector type {name}", "error" if name in used else "warning", f"cannot be loaded: {reason}",
                "mend or uninstall the package that brings it, then restart the agent",
            )  # fmt: skip
        for cls in classes:
            driver = cls.driver
            if driver is None:
                continue
            if driver.installed():
                yield Finding(f"driver {cls.type_name}", "ok", f"{driver.package} {driver.version() or ''}".strip())
            elif cls.type_name in used:
                yield Finding(
                    f"driver {cls.type_name}", "error", f"{driver.package} is not installed, but connectors use it",
                    f"run: {driver.install_hint}, then restart the agent",
                )  # fmt: skip
            else:
                yield Finding(
                    f"driver {cls.type_name}",
                    "info",
                    f"{driver.package} is not installed",
                    f"to use it: {driver.install_hint}",
                )

    def _check_files(self) -> Iterator[Finding]:
        for error in self._watch.last_errors:
            yield Finding("connectors as code", "error", error, f"mend the files in {self._paths.connectors_dir}")

    # --- checks that ask other services ---

    async def _vault_findings(self, *, quick: bool = False) -> list[Finding]:
        facts = await self._vault.status(quick=quick)
        if facts["state"] == "locked":
            return [
                Finding("vault", "error", f"locked: {facts['problem']}", facts["hint"] or "see hfagent vault status")
            ]
        found = [Finding("vault", "warning", note, "see hfagent vault status") for note in facts["notes"]]
        if facts["unreadable"]:
            names = ", ".join(facts["unreadable"])
            found.append(
                Finding(
                    "vault",
                    "error",
                    f"secrets cannot be opened: {names}",
                    "enter them again: hfagent connector rotate NAME",
                )
            )
        if facts["pending_rotation"]:
            found.append(
                Finding(
                    "vault",
                    "warning",
                    f"{facts['pending_rotation']} secrets are under an older key",
                    "run: hfagent vault rotate",
                )
            )
        if not found and not quick:
            source = facts.get("key_source")
            found.append(Finding("vault", "ok", f"{facts['state']}, {facts['secrets']} secrets, key source {source}"))
        if not quick and not facts.get("recovery_key") and facts["secrets"]:
            found.append(
                Finding(
                    "recovery key",
                    "info",
                    "none was made",
                    "hfagent vault recovery-key makes one; keep it off this machine",
                )
            )
        return found

    async def _connector_findings(self, call: CallContext, *, test: bool) -> list[Finding]:
        limit = asyncio.Semaphore(_TESTS_AT_A_TIME)

        async def look(connector: Connector) -> Finding | None:
            name = f"connector {connector.name}"
            if connector.status == "disabled":
                return Finding(name, "info", "disabled", f"hfagent connector enable {_quoted(connector)}")
            if connector.status != "active":
                return Finding(
                    name, "warning", connector.status_reason or connector.status,
                    f"hfagent connector show {_quoted(connector)}",
                )  # fmt: skip
            if not test:
                if connector.last_test_ok is not False:
                    return None
                return Finding(
                    name, "warning", f"its last test failed ({connector.last_tested_at})",
                    f"hfagent connector test {_quoted(connector)}",
                )  # fmt: skip
            async with limit:
                try:
                    report = await self._connectors.test(call, connector=connector.id, mode="quick")
                except AgentError as exc:
                    if exc.code == "cancelled":
                        raise
                    if exc.code == "connector.not_found":
                        return None  # deleted meanwhile
                    return Finding(
                        name, "error", exc.message, exc.hint or f"hfagent connector show {_quoted(connector)}"
                    )
            if report.error is None:
                return Finding(name, "ok", f"answers in {report.latency_ms:.0f} ms")
            hint = report.error.hint or f"hfagent connector test {_quoted(connector)}"
            return Finding(name, "error", f"{report.error.stage}: {report.error.message}", hint)

        found = await asyncio.gather(*(look(connector) for connector in await self._connectors.list()))
        return [finding for finding in found if finding is not None]


def _quoted(connector: Connector) -> str:
    """The connector's name as a shell wants it."""
    return shlex.quote(connector.name)


def _check_private(path: Path, what: str, *, directory: bool = False) -> Iterator[Finding]:
    status = path.stat()
    mode = status.st_mode & 0o777
    if status.st_uid != os.geteuid():
        yield Finding(what, "error", f"{path} belongs to user id {status.st_uid}", f"run: chown {os.geteuid()} {path}")
    elif mode & 0o077:
        yield Finding(
            what,
            "error",
            f"{path} is open to other users (mode {mode:o})",
            f"run: chmod {'700' if directory else '600'} {path}",
        )
    else:
        yield Finding(what, "ok", f"{path} (mode {mode:o})")


def _check_disk(paths: AgentPaths) -> Iterator[Finding]:
    usage = shutil.disk_usage(paths.data_dir)
    text = f"{usage.free / 2**30:,.1f} GiB free of {usage.total / 2**30:,.1f}"
    if usage.free < _LOW_DISK:
        yield Finding("disk", "warning", text, f"free some space on the file system of {paths.data_dir}")
    else:
        yield Finding("disk", "ok", text)


def _check_socket(path: Path) -> Iterator[Finding]:
    try:
        mode = path.stat().st_mode & 0o777
    except FileNotFoundError:
        yield Finding("socket", "info", f"{path} does not exist (systemd may have handed over another one)")
        return
    if mode & 0o007:
        yield Finding(
            "socket",
            "error",
            f"{path} is open to everybody (mode {mode:o})",
            f"run: chmod 600 {path}",
        )
    else:
        yield Finding("socket", "ok", f"{path} (mode {mode:o})")


def _check_limits() -> Iterator[Finding]:
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft < _LOW_DESCRIPTORS:
        yield Finding(
            "open files",
            "warning",
            f"the limit is {soft}",
            f"raise it: LimitNOFILE= in the unit, or ulimit -n {min(hard, 4096)}",
        )
    else:
        yield Finding("open files", "ok", f"limit {soft}")
    if resource.getrlimit(resource.RLIMIT_CORE)[0] != 0:
        yield Finding(
            "core dumps",
            "warning",
            "a crash would write secrets to disk",
            "set LimitCORE=0 in the unit, or ulimit -c 0",
        )


def _check_environment() -> Iterator[Finding]:
    proxies = sorted(
        name for name in os.environ if name.lower() in ("http_proxy", "https_proxy", "all_proxy", "no_proxy")
    )
    if proxies:
        yield Finding("proxy", "info", f"the environment sets {', '.join(proxies)}")
    time_zone = os.environ.get("TZ")
    if time_zone and time_zone not in ("UTC", "Etc/UTC"):
        yield Finding("time zone", "info", f"TZ={time_zone}; sessions with sources are always in UTC")
