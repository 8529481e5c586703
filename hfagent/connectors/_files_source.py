"""Finds the configured files and opens them: the only place that turns a path into bytes.

The policy (`context.allowed_paths`) is applied to the path after symlinks are resolved, and once more to the opened
descriptor, so that a path exchanged in between gains nothing. Only regular files are opened, for reading, without
following a link in the last step.

What it is not: no parsing. A name given here is what users see as a stream's name: the file's name without its
extensions, in the namespace of its folder.
"""

from __future__ import annotations

import errno
import fnmatch
import gzip
import hashlib
import io
import os
import stat
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

from hfagent.connectors._files_config import CsvConfig, Format
from hfagent.foundation.errors import AgentError, ConfigError, NotFound, SourceError
from hfagent.sdk.connector import ConnectorContext

__all__ = ["Identity", "SourceFile", "find_files", "open_source"]

_EXTENSIONS: dict[str, Format] = {
    ".csv": "csv", ".txt": "csv", ".tsv": "tsv", ".tab": "tsv", ".jsonl": "jsonl", ".ndjson": "jsonl", ".xlsx": "xlsx",
    ".xlsm": "xlsx", ".xlsb": "xlsx", ".xls": "xls", ".ods": "ods",
}  # fmt: skip
_MAGIC = "*?["


@dataclass(frozen=True)
class Identity:
    """Which content: changes whenever the file is replaced or written to."""

    device: int
    inode: int
    size: int
    mtime_ns: int

    @classmethod
    def of(cls, status: os.stat_result) -> Identity:
        return cls(status.st_dev, status.st_ino, status.st_size, status.st_mtime_ns)

    def digest(self) -> str:
        """A short text of it, for the names of derived files."""
        text = f"{self.device}:{self.inode}:{self.size}:{self.mtime_ns}"
        return hashlib.blake2b(text.encode(), digest_size=10).hexdigest()


@dataclass(frozen=True)
class SourceFile:
    """One file: where it really is, what to call it, and which content it has now."""

    path: Path
    """Resolved."""
    shown: str
    """As found: below the configured folder, with its extension."""
    namespace: str | None
    stem: str
    format: Format
    gzipped: bool
    identity: Identity
    problem: AgentError | None = None
    """Why it cannot be read, when that is known already."""


def find_files(config: CsvConfig, context: ConnectorContext) -> list[SourceFile]:
    """Return the files that the configuration names, by namespace and name.

    Raises `ConfigError` (`config.policy_denied`), `NotFound` (`model.not_found` for a file, `namespace.not_found` for a
    folder) or `SourceError` (`permission.denied`). A file of a folder that is not allowed or readable comes with its
    `problem` instead.
    """
    roots = _allowed_roots(context)
    configured = Path(config.path)
    pattern = config.glob
    if any(c in str(configured) for c in _MAGIC) and not configured.exists():
        base = Path(*configured.parts[: _first_magic(configured)])
        pattern = str(configured.relative_to(base))
        return _in_folder(base, pattern, config, roots, deep="**" in pattern or config.recursive)
    try:
        status = configured.stat()
    except OSError as exc:
        _require_allowed(configured.parent.resolve(), roots, shown=str(configured))
        raise _absent(configured, exc) from exc
    if stat.S_ISDIR(status.st_mode):
        return _in_folder(configured, pattern, config, roots, deep=config.recursive)
    resolved = _require_allowed(configured.resolve(), roots, shown=str(configured))
    if not stat.S_ISREG(status.st_mode):
        raise ConfigError(f"{configured} is neither a regular file nor a folder", field="path")
    return [_describe(resolved, configured.name, None, config, status)]


def open_source(file: SourceFile, context: ConnectorContext) -> BinaryIO:
    """Open a file for reading, as it is stored (packed if it is packed).

    Raises `NotFound` (`model.not_found`), `SourceError` (`permission.denied`), or `read.partial_results` when it is no
    longer the file that was found.
    """
    if file.problem is not None:
        raise file.problem
    flags = os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC | os.O_NONBLOCK
    try:
        descriptor = os.open(file.path, flags)
    except OSError as exc:
        raise _absent(file.path, exc) from exc
    try:
        status = os.fstat(descriptor)
        link = Path(f"/proc/self/fd/{descriptor}")
        really = link.readlink() if link.is_symlink() else file.path
        if not stat.S_ISREG(status.st_mode) or not _inside(really, _allowed_roots(context)):
            raise changed(file)
        if Identity.of(status) != file.identity:
            raise changed(file)
        return os.fdopen(descriptor, "rb")
    except BaseException:
        try:
            os.close(descriptor)
        except OSError:
            pass  # fdopen had taken it over
        raise


def unchanged(file: SourceFile, handle: BinaryIO) -> bool:
    """Tell whether both the opened file and what its path leads to are still the content that was found."""
    try:
        return Identity.of(os.fstat(handle.fileno())) == file.identity == Identity.of(file.path.stat())
    except OSError:
        return False


def changed(file: SourceFile) -> AgentError:
    """The error for a file that was written to, replaced or removed while it was read."""
    gone = not file.path.exists()
    return SourceError(
        f"the file {file.shown} was {'removed' if gone else 'changed'} while it was being read",
        code="read.partial_results",
        hint="read it again; writers should write to another name and rename when they are done"
        if not gone
        else "put the file back, or wait for the next one",
    )


def unpacked(file: SourceFile, handle: BinaryIO, limit: int) -> BinaryIO:
    """Return the content of a file; unpacking a .gz file stops at `limit` bytes with `read.limit_exceeded`."""
    if not file.gzipped:
        return handle
    return io.BufferedReader(_Limited(gzip.GzipFile(fileobj=handle), limit, file.shown), 256 * 1024)


class _Limited(io.RawIOBase):
    """Ends with an error instead of unpacking without bounds."""

    def __init__(self, inner: gzip.GzipFile, limit: int, shown: str) -> None:
        self._inner = inner
        self._left = limit
        self._shown = shown

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: memoryview) -> int:  # type: ignore[override]
        try:
            data = self._inner.read(len(buffer))
        except (OSError, EOFError) as exc:
            raise SourceError(
                f"the file {self._shown} is not a complete gzip file: {exc}",
                code="read.corrupt",
                hint="copy or create the file again",
            ) from exc
        self._left -= len(data)
        if self._left < 0:
            raise SourceError(
                f"the file {self._shown} unpacks to more than max_unzipped_bytes",
                code="read.limit_exceeded",
                hint="raise max_unzipped_bytes if the file is trusted",
            )
        buffer[: len(data)] = data
        return len(data)


# --- looking around ---


def _in_folder(
    folder: Path, pattern: str, config: CsvConfig, roots: tuple[Path, ...], *, deep: bool
) -> list[SourceFile]:
    resolved = _require_allowed(folder.resolve(), roots, shown=str(folder))
    try:
        if not stat.S_ISDIR(folder.stat().st_mode):
            raise NotADirectoryError(errno.ENOTDIR, "not a folder", str(folder))
        os.scandir(folder).close()
    except OSError as exc:
        raise _absent(folder, exc, folder=True) from exc
    files: list[SourceFile] = []
    matches = _matcher(pattern)
    newest = time.time() - config.settle_s if config.source == "watch" else None
    for path in _walk(resolved, deep or "/" in pattern):
        relative = path.relative_to(resolved)
        name = str(relative)
        if not matches(name) or (not pattern and _by_name(path.name)[0] is None):
            continue
        if len(files) >= config.max_files:
            raise SourceError(
                f"{folder} has more than {config.max_files} files to read",
                code="read.limit_exceeded",
                hint="narrow the glob pattern, or raise max_files",
            )
        parent = str(relative.parent)
        file = _of_folder(path, name, None if parent == "." else parent, config, roots)
        if newest is not None and file.problem is None and file.identity.mtime_ns > newest * 1e9:
            continue  # still settling: the next look takes it
        files.append(file)
    return sorted(files, key=lambda f: (f.namespace or "", f.stem, f.shown))


def _of_folder(path: Path, shown: str, namespace: str | None, config: CsvConfig, roots: tuple[Path, ...]) -> SourceFile:
    try:
        resolved = _require_allowed(path.resolve(strict=True), roots, shown=shown)
        return _describe(resolved, shown, namespace, config, resolved.stat())
    except AgentError as problem:
        return _describe(path, shown, namespace, config, None, problem)
    except OSError as exc:
        return _describe(path, shown, namespace, config, None, _absent(path, exc))


def _describe(
    path: Path,
    shown: str,
    namespace: str | None,
    config: CsvConfig,
    status: os.stat_result | None,
    problem: AgentError | None = None,
) -> SourceFile:
    name = Path(shown).name
    by_name, stem, gzipped = _by_name(name)
    format_: Format = by_name or "csv"
    if config.format != "auto":
        format_ = config.format
    elif by_name is None and status is not None and problem is None:
        format_ = _by_content(path)
    identity = Identity.of(status) if status is not None else Identity(0, 0, 0, 0)
    if status is not None and status.st_size > config.max_bytes:
        problem = SourceError(
            f"the file {shown} has {status.st_size} bytes, more than max_bytes ({config.max_bytes})",
            code="read.limit_exceeded",
            hint="raise max_bytes if the agent should read it",
        )
    return SourceFile(path, shown, namespace, stem, format_, gzipped, identity, problem)


def _by_name(name: str) -> tuple[Format | None, str, bool]:
    """Format by extension, the name without it, and whether it is packed."""
    gzipped = name.lower().endswith(".gz")
    inner = name[:-3] if gzipped else name
    for extension, format_ in _EXTENSIONS.items():
        if inner.lower().endswith(extension) and len(inner) > len(extension):
            return format_, inner[: -len(extension)], gzipped
    return None, inner, gzipped


def _by_content(path: Path) -> Format:
    with path.open("rb") as handle:
        head = handle.read(64)
    if head.startswith(b"PK\x03\x04"):
        return "ods" if b"opendocument" in head else "xlsx"
    if head.startswith(b"\xd0\xcf\x11\xe0"):
        return "xls"
    return "jsonl" if head.lstrip(b"\xef\xbb\xbf \r\n\t").startswith(b"{") else "csv"


def _walk(folder: Path, deep: bool) -> Iterator[Path]:
    """Files below `folder`; links to folders are not followed, hidden and lock files are left out."""
    pending = [folder]
    while pending:
        here = pending.pop()
        try:
            entries = sorted(os.scandir(here), key=lambda e: e.name)
        except PermissionError:
            continue  # a closed sub-folder hides its files, it does not spoil the others
        for entry in entries:
            if entry.name.startswith((".", "~$")):
                continue
            if entry.is_dir(follow_symlinks=False):
                if deep:
                    pending.append(Path(entry.path))
            elif entry.is_file() or entry.is_symlink():
                yield Path(entry.path)


def _matcher(pattern: str) -> Callable[[str], bool]:
    if not pattern:
        return lambda name: True
    if "/" not in pattern:
        return lambda name: fnmatch.fnmatchcase(name.rsplit("/", 1)[-1], pattern)
    flat = pattern.replace("**/", "")
    return lambda name: fnmatch.fnmatchcase(name, pattern) or ("**/" in pattern and fnmatch.fnmatchcase(name, flat))


def _first_magic(path: Path) -> int:
    return next(i for i, part in enumerate(path.parts) if any(c in part for c in _MAGIC))


# --- policy ---


def _allowed_roots(context: ConnectorContext) -> tuple[Path, ...]:
    return tuple(Path(root).resolve() for root in context.allowed_paths)


def _inside(path: Path, roots: tuple[Path, ...]) -> bool:
    return any(path == root or root in path.parents for root in roots)


def _require_allowed(resolved: Path, roots: tuple[Path, ...], *, shown: str) -> Path:
    if _inside(resolved, roots):
        return resolved
    listed = ", ".join(map(str, roots)) or "none"
    raise ConfigError(
        f"{shown} is not inside a folder that this agent may read",
        code="config.policy_denied",
        field="path",
        hint=f"add its folder to policy.allowed_paths in the agent's configuration (now: {listed})",
    )


def _absent(path: Path, exc: OSError, *, folder: bool = False) -> AgentError:
    if exc.errno in (errno.EACCES, errno.EPERM):
        return SourceError(
            f"{path} cannot be read: permission denied",
            code="permission.denied",
            hint=f"let the agent's user read it, for instance with chmod o+r {path}",
        )
    if exc.errno in (errno.ENOENT, errno.ENOTDIR, errno.ELOOP):
        return NotFound(
            f"{path} does not exist" if exc.errno != errno.ELOOP else f"{path} is a link that leads nowhere",
            code="namespace.not_found" if folder else "model.not_found",
            hint="check the path; it is looked up on the agent's machine",
        )
    return SourceError(f"{path} cannot be read: {exc.strerror or exc}", code="read.corrupt")
