"""What the fault tests share: the oracle, the traced victim, the points at which it can be hit, digests of directories."""

from __future__ import annotations

import hashlib
import json
import os
import random
import re
import shutil
import sqlite3
import subprocess
import sys
from collections import Counter
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import pytest

from tests.lakehouse import victim

ROOT = Path(__file__).parents[2]
FULL = bool(os.environ.get("HFAGENT_FULL"))
CALLS = (
    "openat,write,pwrite64,writev,pwritev,copy_file_range,fallocate,fsync,fdatasync,sync_file_range,rename,renameat,"
    "renameat2,link,linkat,symlink,symlinkat,unlink,unlinkat,rmdir,truncate,ftruncate,mkdir,mkdirat"
)
needs_strace = pytest.mark.skipif(
    not shutil.which("strace"), reason="hitting a chosen system call needs strace (Debian: apt-get install strace)"
)
_T = TypeVar("_T")


def sample(points: Sequence[_T], size: int, *, seed: int = 20) -> list[_T]:
    """A seeded choice in the original order; everything with HFAGENT_FULL=1."""
    if FULL or len(points) <= size:
        return list(points)
    chosen = sorted(random.Random(seed).sample(range(len(points)), size))
    return [points[place] for place in chosen]


# --- the oracle ---


def expected(source: Path, mode: str) -> Counter[tuple[Any, ...]]:
    """What the table must hold in the end, from the source alone."""
    with closing(sqlite3.connect(source)) as connection:
        changes = connection.execute("SELECT id, changed, text, digest FROM change ORDER BY changed").fetchall()
    if mode == "incremental":
        return Counter(changes)
    return Counter({change[0]: change for change in changes}.values())


def held(home: Path) -> Counter[tuple[Any, ...]]:
    """What any reader of the table finds, without the lakehouse's help."""
    import deltalake
    import pyarrow as pa

    table = pa.table(deltalake.DeltaTable(str(home / victim.TABLE)).to_pyarrow_table())
    return Counter(tuple(row[name] for name in ("id", "changed", "text", "digest")) for row in table.to_pylist())


def verdict(home: Path, source: Path, mode: str) -> str:
    """`ok`, or what is wrong: multisets, both ways."""
    try:
        found = held(home)
    except Exception as exc:  # whatever a reader raises: the table cannot be read
        return f"unreadable: {type(exc).__name__}: {str(exc)[:120]}"
    wanted = expected(source, mode)
    lost, extra = wanted - found, found - wanted
    return "ok" if not lost and not extra else f"lost {lost.total()}, too many {extra.total()}"


def restart(home: Path, source: Path, mode: str, variant: str = "sound") -> str:
    """Run the loop again in this process until it is done, and judge the table."""
    try:
        victim.sync(home, source, mode, variant)
    except Exception as exc:  # any failure to start again is the finding
        return f"restart fails: {type(exc).__name__}: {str(exc)[:160]}"
    return verdict(home, source, mode)


def tree_digest(directory: Path, *, but: Sequence[str] = ()) -> str:
    """A digest over names, kinds and bytes of everything below a directory."""
    digest = hashlib.sha256()
    for path in sorted(directory.rglob("*")):
        if path.name not in but:
            content = path.read_bytes() if path.is_file() else b"/"
            digest.update(f"{path.relative_to(directory)}\0{len(content)}\0".encode() + content)
    return digest.hexdigest()


# --- the victim ---


@dataclass(frozen=True)
class Point:
    """A system call at which the victim can be hit.

    strace counts per thread. The main thread's calls are therefore numbered behind a padding that no other thread reaches;
    those of delta-rs' threads, which take turns as they like, are numbered per file (`path`, within the home directory).
    """

    call: str
    number: int
    path: str | None
    what: str


class Server:
    """A fork server of victims. One job at a time."""

    def __init__(self, log: Path) -> None:
        quiet = {"TOKIO_WORKER_THREADS": "1", "RAYON_NUM_THREADS": "1", "OMP_NUM_THREADS": "1"}
        self._log = log.open("wb")
        self._process = subprocess.Popen(
            [sys.executable, "-m", "tests.lakehouse.victim"], cwd=ROOT, text=True,
            env=os.environ | quiet | {"PYTHONDONTWRITEBYTECODE": "1", "PYTHONWARNINGS": "ignore"},
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=self._log,
        )  # fmt: skip

    def run(
        self,
        home: Path,
        source: Path,
        mode: str,
        *,
        variant: str = "sound",
        strace: Sequence[str] = (),
        trace: Path | None = None,
        pad: str | None = None,
    ) -> tuple[int, int]:
        """Run a victim, under strace when a trace is wanted; returns its exit status and process id."""
        job = {"home": str(home), "source": str(source), "mode": mode, "variant": variant, "pad": pad}
        child = int(self._say(json.dumps(job)))
        tracer: subprocess.Popen[str] | None = None
        if trace is not None:
            tracer = subprocess.Popen(
                ["strace", "-f", "-y", "-o", str(trace), *strace, "-p", str(child)],
                stderr=subprocess.PIPE, text=True,
            )  # fmt: skip
            assert tracer.stderr is not None
            attached = tracer.stderr.readline()
            assert "attached" in attached, attached
        status = int(self._say("go"))
        if tracer is not None:
            tracer.communicate(timeout=60)
        return status, child

    def close(self) -> None:
        assert self._process.stdin is not None and self._process.stdout is not None
        self._process.stdin.close()
        self._process.wait(30)
        self._process.stdout.close()
        self._log.close()

    def _say(self, line: str) -> str:
        assert self._process.stdin is not None and self._process.stdout is not None
        self._process.stdin.write(line + "\n")
        self._process.stdin.flush()
        answer = self._process.stdout.readline()
        assert answer, "the fork server of the victims has ended"
        return answer


@contextmanager
def servers(scratch: Path, count: int = 2) -> Iterator[list[Server]]:
    made = [Server(scratch / f"victims-{number}.err") for number in range(count)]
    try:
        yield made
    finally:
        for server in made:
            server.close()


_LINE = re.compile(r"(\d+) +(\w+)\((.*)")
_WRITES = re.compile(r"O_CREAT|O_TRUNC")


def writing_calls(trace: Path, home: Path, main: int) -> list[Point]:
    """The victim's writing calls within `home`, in order."""
    counts: Counter[tuple[str, ...]] = Counter()
    points: list[Point] = []
    for line in trace.read_text(errors="replace").splitlines():
        match = _LINE.match(line)
        if match is None:
            continue
        thread, call, rest = match.groups()
        path, ours = _path(rest, home), int(thread) == main
        counter = (call,) if ours else (call, path or "", thread)
        counts[counter] += 1
        if path is None or (call == "openat" and not _WRITES.search(rest)):
            continue
        if ours:
            points.append(Point(call, counts[counter] + victim.PADDING, None, _name(path)))
        else:
            points.append(Point(call, counts[counter], path, _name(path)))
    return points


def _path(rest: str, home: Path) -> str | None:
    """The file that a call names first, within `home`; None when it names none there."""
    found = re.search(re.escape(str(home)) + r'(?:/([^">, ]*))?[">]', rest)
    return None if found is None else found[1] or "."


def _name(path: str) -> str:
    """A file's name without what is random in it."""
    return re.sub(r"[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}", "*", path)


def enumerate_points(server: Server, scratch: Path, source: Path, mode: str, variant: str = "sound") -> list[Point]:
    """Every writing call of an undisturbed run, in order."""
    home = scratch / f"counted-{mode}-{variant}"
    home.mkdir(mode=0o700)
    trace = scratch / f"counted-{mode}-{variant}.trace"
    status, child = server.run(home, source, mode, variant=variant, trace=trace, strace=["-e", f"trace={CALLS}"])
    assert status == 0
    points = writing_calls(trace, home, child)
    # Data files that delta-rs writes itself have random names. Only the wrong variants have such.
    points = [point for point in points if point.path is None or "*" not in point.what]
    assert len({(point.call, point.number, point.path) for point in points}) == len(points), "some hide others"
    return points


@dataclass(frozen=True)
class Hit:
    """What came of one fault."""

    point: Point
    status: int
    home: Path

    def __str__(self) -> str:
        return f"{self.point.call} number {self.point.number} on {self.point.what} (status {self.status})"


def strike(server: Server, home: Path, source: Path, mode: str, variant: str, point: Point, effect: str) -> Hit:
    """Run a victim that is hit at one point. `effect`: as strace's `inject` takes it; with `…`, from there on."""
    home.mkdir(mode=0o700)
    when = f"{point.number}{'+' if effect.endswith('…') else ''}"
    options = ["-e", f"trace={point.call}", "-e", f"inject={point.call}:{effect.rstrip('…')}:when={when}"]
    if point.path is not None:
        options += ["-P", str(home / point.path)]
    pad = point.call if point.path is None else None
    status, _ = server.run(home, source, mode, variant=variant, trace=Path(os.devnull), strace=options, pad=pad)
    return Hit(point, status, home)


def strike_all(
    scratch: Path, source: Path, mode: str, variant: str, hits: Sequence[tuple[Point, str]], workers: list[Server]
) -> Iterator[Hit]:
    """Strike at every point, on as many servers as there are, each in a home of its own."""
    free = list(workers)

    def one(numbered: tuple[int, tuple[Point, str]]) -> Hit:
        number, (point, effect) = numbered
        server = free.pop()
        try:
            return strike(server, scratch / f"{mode}-{variant}-{number}", source, mode, variant, point, effect)
        finally:
            free.append(server)

    with ThreadPoolExecutor(len(workers)) as pool:
        yield from pool.map(one, enumerate(hits))
