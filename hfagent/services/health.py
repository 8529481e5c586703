"""Everything that can be wrong with an agent, in one table; `doctor` checks it, `status` shows what is wrong now.

No other place invents warnings. Each check names what it found and, when that is not good, the remedy.
"""

from __future__ import annotations

import os
import platform
import resource
import shutil
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from hfagent import __version__
from hfagent.foundation.errors import AgentError
from hfagent.foundation.paths import AgentPaths
from hfagent.model.settings import Settings
from hfagent.sdk.registry import Registry
from hfagent.services.apply import DirectoryWatch
from hfagent.services.configuration import load_settings
from hfagent.services.connectors import Connectors
from hfagent.services.context import CallContext
from hfagent.services.vault import VaultVerbs
from hfagent.services.workers import Lane, Workers
from hfagent.store.store import Store

__all__ = ["Finding", "Health"]

Status = Literal["ok", "warning", "error", "info"]

_LOW_DISK = 500 * 1024 * 1024
_LOW_DESCRIPTORS = 1024


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
    ) -> None:
        self._paths = paths
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
        findings = await self._workers.call(self._lane, lambda: list(self._local()))
        findings += await self._vault_findings()
        findings += await self._connector_findings(call, test=connectors)
        call.progress({"kind": "end", "message": f"{len(findings)} checks"})
        return findings

    async def problems(self) -> list[Finding]:
        """What is wrong right now, cheaply: for `status`."""
        found = await self._workers.call(self._lane, lambda: [*_check_disk(self._paths), *self._check_files()])
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
        yield from self._check_store()
        yield from self._check_config()
        yield from _check_socket(self._paths.socket)
        yield from _check_limits()
        yield from _check_environment()
        yield from self._check_drivers()
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
            yield Finding("store", "warning", warning)

    def _check_config(self) -> Iterator[Finding]:
        file = self._paths.config_file
        if not file.exists():
            yield Finding("configuration", "ok", f"defaults ({file} does not exist)")
            return
        try:
            load_settings(file)
        except AgentError as exc:
            yield Finding("configuration", "error", exc.message, exc.hint)
            return
        if file.stat().st_mode & 0o022:
            yield Finding(
                "configuration", "warning", f"{file} can be changed by other users", f"run: chmod go-w {file}"
            )  # fmt: skip
            return
        yield Finding("configuration", "ok", str(file))

    def _check_drivers(self) -> Iterator[Finding]:
        used = {record.type for record in self._store.connectors.list()}
        for cls in self._registry.all():
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
        facts = await self._vault.status()
        if facts["state"] == "locked":
            return [
                Finding(
                    "vault", "error", f"locked: {facts.get('reason')}", facts.get("hint") or "see hfagent vault status"
                )
            ]
        found = []
        if facts["unreadable"]:
            names = ", ".join(facts["unreadable"])
            found.append(
                Finding(
                    "vault",
                    "error",
                    f"secrets cannot be opened: {names}",
                    "enter them again: hfagent connector edit NAME",
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
        found = []
        for connector in await self._connectors.list():
            name = f"connector {connector.name}"
            if connector.status != "active":
                found.append(
                    Finding(
                        name,
                        "warning",
                        connector.status_reason or connector.status,
                        f"hfagent connector show {connector.name!r}",
                    )
                )
                continue
            if not test:
                if connector.last_test_ok is False:
                    found.append(
                        Finding(
                            name,
                            "warning",
                            f"the last test failed ({connector.last_tested_at})",
                            f"hfagent connector test {connector.name!r}",
                        )
                    )
                continue
            report = await self._connectors.test(call, connector=connector.id, mode="quick")
            if report.ok:
                found.append(Finding(name, "ok", f"answers in {report.latency_ms:.0f} ms"))
            elif report.error is not None:
                found.append(Finding(name, "error", f"{report.error.stage}: {report.error.message}", report.error.hint))
        return found


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
        yield Finding("socket", "info", f"{path} does not exist")
        return
    if mode & 0o007:
        yield Finding(
            "socket",
            "error",
            f"{path} is open to everybody (mode {mode:o})",
            "stop the agent, remove it, start the agent",
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
    core = resource.getrlimit(resource.RLIMIT_CORE)[0]
    if core not in (0,):
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
