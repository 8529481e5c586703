"""The power goes at any file operation: what was not synced may be lost, torn or NUL, and no row is lost or doubled.

One undisturbed run is recorded, and the disk's possible contents after every operation are built from the record. POSIX
is taken at its word: a file's content is safe after its own fsync, a name after one of its directory.
"""

from __future__ import annotations

import os
import random
import re
import shutil
import tempfile
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath
from typing import NamedTuple

import pytest

from tests.lakehouse import faults, victim

pytestmark = [faults.needs_strace, pytest.mark.timeout(1200 if faults.FULL else 120)]

CONTENTS = ("synced", "torn", "nul", "whole")
"""What is left of bytes that were not synced: nothing (a new file is then empty), half, only the length, everything."""
NAMES = ("kept", "lost")


class Operation(NamedTuple):
    kind: str
    path: str
    """Relative to the home directory; "." is that itself."""
    data: bytes = b""
    offset: int | None = None
    other: str = ""


_STRING = re.compile(r'"((?:\\x[0-9a-f]{2})*)"')
_DESCRIPTOR = re.compile(r"\w+\(\d+<((?:\\x[0-9a-f]{2})*)>")
_RESULT = re.compile(r"\) += (-?\d+|0x[0-9a-f]+|\?)")


def recorded(trace: Path, home: Path) -> list[Operation]:
    """The file operations within `home`, as strace saw them succeed."""
    operations: list[Operation] = []
    unfinished: dict[str, str] = {}
    for line in trace.read_text().splitlines():
        thread, _, call = line.partition(" ")
        call = call.strip()
        if "<unfinished" in call:
            unfinished[thread] = call.split("<unfinished")[0]
            continue
        if resumed := re.match(r"<\.\.\. \w+ resumed>(.*)", call):
            call = unfinished.pop(thread) + resumed[1]
        results = _RESULT.findall(call)
        if not results or results[-1] in ("-1", "?"):
            continue
        operation = _operation(call, int(results[-1], 0), home)
        if operation is not None:
            operations.append(operation)
    return operations


def _operation(call: str, result: int, home: Path) -> Operation | None:
    name = call.split("(", 1)[0]
    strings = [bytes.fromhex(text.replace("\\x", "")) for text in _STRING.findall(call)]
    opened = _DESCRIPTOR.match(call)
    if opened and name not in ("openat", "linkat", "unlinkat", "mkdirat", "renameat", "renameat2"):
        path = _within(bytes.fromhex(opened[1].replace("\\x", "")).decode(), home)
        if path is None:
            return None
        if name == "write":
            return Operation("write", path, strings[0][:result])
        if name == "pwrite64":
            offset = int(re.findall(r", (\d+)\) += ", call)[-1])
            return Operation("write", path, strings[0][:result], offset)
        if name in ("fsync", "fdatasync"):
            return Operation("sync", path)
        if name == "ftruncate":
            return Operation("truncate", path, offset=int(re.findall(r", (\d+)\) += ", call)[-1]))
        raise AssertionError(f"the model does not know {name}")
    paths = [_within(text.decode(), home) for text in strings]
    if not paths or paths[0] is None:
        return None
    first, second = paths[0], (paths[1] or "") if len(paths) > 1 else ""
    if name == "openat":
        if "O_CREAT" not in call and "O_TRUNC" not in call:
            return None
        return Operation("create", first, other="truncate" if "O_TRUNC" in call else "")
    kinds = {"rename": "rename", "renameat": "rename", "renameat2": "rename", "link": "link", "linkat": "link",
             "unlink": "unlink", "unlinkat": "unlink", "mkdir": "mkdir", "mkdirat": "mkdir"}  # fmt: skip
    assert name in kinds, f"the model does not know {name}"
    return Operation(kinds[name], first, other=second)


def _within(path: str, home: Path) -> str | None:
    path = os.path.normpath(path.removesuffix(" (deleted)"))
    if path == str(home):
        return "."
    return path.removeprefix(f"{home}/") if path.startswith(f"{home}/") else None


@dataclass(eq=False)
class File:
    now: bytes = b""
    synced: bytes = b""


@dataclass
class Disk:
    """What programs see (`names`) and what is safe (`safe`). A directory is a name without a file."""

    names: dict[str, File | None] = field(default_factory=lambda: {".": None})
    safe: dict[str, File | None] = field(default_factory=lambda: {".": None})
    positions: Counter[str] = field(default_factory=Counter)

    def apply(self, operation: Operation) -> None:
        kind, path, data, offset, other = operation
        file = self.names.get(path)
        if kind == "create":
            if path not in self.names:
                self.names[path] = File()
            elif other and file is not None:
                file.now = b""
            self.positions[path] = 0
        elif kind == "write":
            if file is None:
                return  # unlinked meanwhile
            start = self.positions[path] if offset is None else offset
            before = file.now.ljust(start, b"\0")
            file.now = before[:start] + data + before[start + len(data) :]
            if offset is None:
                self.positions[path] = start + len(data)
        elif kind == "truncate":
            if file is not None and offset is not None:
                file.now = file.now[:offset].ljust(offset, b"\0")
        elif kind == "mkdir":
            self.names[path] = None
        elif kind == "link":
            self.names[other] = file
        elif kind == "rename":
            self.names[other] = self.names.pop(path)
        elif kind == "unlink":
            self.names.pop(path, None)
        elif file is not None:
            file.synced = file.now
        else:
            self._sync_directory(path)

    def _sync_directory(self, directory: str) -> None:
        for name in [name for name in self.safe if name != "." and _parent(name) == directory]:
            if name not in self.names:
                del self.safe[name]
        for name, file in self.names.items():
            if name != "." and _parent(name) == directory:
                self.safe[name] = file

    def state(self, contents: str, names: str) -> State:
        """One possible content after the power is back."""
        dice = random.Random(f"{contents}/{names}/{len(self.names)}")
        chosen: dict[str, File | None] = dict(self.safe if names == "lost" else self.names)
        if names == "mixed":
            for name in self.names.keys() ^ self.safe.keys():
                if dice.random() < 0.5:
                    chosen.pop(name, None)
                else:
                    chosen[name] = self.names.get(name) or self.safe.get(name)
        left: dict[str, bytes | None] = {}
        for name in sorted(chosen):
            if name == "." or name.endswith("-shm"):
                continue  # shared memory of SQLite: made anew after a restart
            if any(str(parent) != "." and str(parent) not in chosen for parent in PurePosixPath(name).parents):
                continue  # a name in a directory that is lost
            file = chosen[name]
            how = dice.choice(CONTENTS) if contents == "mixed" else contents
            left[name] = None if file is None else _left(file, how)
        return tuple(sorted(left.items()))


State = tuple[tuple[str, bytes | None], ...]


def _parent(name: str) -> str:
    return str(PurePosixPath(name).parent)


def _left(file: File, contents: str) -> bytes:
    synced, now = file.synced, file.now
    if contents == "whole" or synced == now:
        return now
    if contents == "synced":
        return synced
    if now.startswith(synced):
        if contents == "torn":
            return now[: len(synced) + (len(now) - len(synced)) // 2]
        return synced.ljust(len(now), b"\0")
    # Bytes in place of others: half of the new ones, or the old ones with the new length.
    half = len(now) // 2
    return now[:half] + synced[half : len(now)] if contents == "torn" else synced[: len(now)].ljust(len(now), b"\0")


def crash_states(operations: Sequence[Operation], *, since: int = 0) -> Iterator[tuple[str, State]]:
    """Every distinct state after each operation, with a name for it."""
    disk = Disk()
    seen: set[State] = set()
    combinations = [(contents, names) for names in NAMES for contents in CONTENTS]
    combinations += [("mixed", "kept"), ("mixed", "mixed"), ("whole", "mixed")]
    for number, operation in enumerate(operations):
        disk.apply(operation)
        if number < since:
            continue
        for contents, names in combinations:
            state = disk.state(contents, names)
            if state not in seen:
                seen.add(state)
                label = f"after {number} {operation.kind} {operation.path}{operation.other and ' ' + operation.other}"
                yield f"{label}, contents {contents}, names {names}", state


def record(
    server: faults.Server, home: Path, source: Path, mode: str, variant: str, *, kill: str = ""
) -> list[Operation]:
    """Run a victim in `home` and return what it did to the disk. `kill`: injection options of strace."""
    trace = home.with_suffix(".trace")
    options = ["-xx", "-s", "4000000", "-e", f"trace={faults.CALLS}", *(["-e", kill] if kill else [])]
    status, _ = server.run(home, source, mode, variant=variant, trace=trace, strace=options)
    assert status == (-9 if kill else 0)
    return recorded(trace, home)


def lay_out(home: Path, state: State) -> None:
    home.mkdir(mode=0o700)
    for name, content in state:
        path = home / name
        if content is None:
            path.mkdir(mode=0o700, parents=True, exist_ok=True)
        else:
            path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
            path.write_bytes(content)


def final(operations: Sequence[Operation]) -> State:
    disk = Disk()
    for operation in operations:
        disk.apply(operation)
    return disk.state("whole", "kept")


def on_disk(home: Path) -> State:
    return tuple(
        sorted(
            (str(path.relative_to(home)), None if path.is_dir() else path.read_bytes())
            for path in home.rglob("*")
            if not path.name.endswith("-shm")
        )
    )


def judged(states: Sequence[tuple[str, State]], source: Path, mode: str, variant: str) -> list[str]:
    """What goes wrong after a restart, in which state."""
    failures: list[str] = []
    # Thousands of small files that are synced one by one: in memory where there is room for it.
    where = "/dev/shm" if os.access("/dev/shm", os.W_OK) else None
    with tempfile.TemporaryDirectory(dir=where, prefix="hfagent-power-") as scratch:
        for number, (label, state) in enumerate(states):
            home = Path(scratch) / str(number)
            lay_out(home, state)
            outcome = faults.restart(home, source, mode, variant)
            if outcome != "ok":
                failures.append(f"{label}: {outcome}")
            shutil.rmtree(home)
    return failures


def cut(scratch: Path, mode: str, *, variant: str = "sound", most: int) -> tuple[int, int, list[str]]:
    """How many distinct states there are, how many were tried, and what went wrong."""
    source = scratch / "source.db"
    victim.make_source(source)
    home = scratch / "home"
    home.mkdir(mode=0o700)
    with faults.servers(scratch, 1) as (server,):
        operations = record(server, home, source, mode, variant)
    assert final(operations) == on_disk(home), "the record does not explain what is on the disk"
    states = list(crash_states(operations))
    tried = faults.sample(states, most)
    failures = judged(tried, source, mode, variant)
    kinds = Counter(kind for failure in failures for kind in re.findall("restart fails|unreadable|lost", failure)[:1])
    print(
        f"{mode}/{variant}: {len(operations)} operations, {len(states)} distinct states, {len(tried)} tried,"
        f" {len(failures)} failures {dict(kinds)}"
    )
    return len(states), len(tried), failures


@pytest.mark.parametrize(("mode", "most"), [("incremental", 10_000), ("merge", 40), ("full", 40)])
def test_a_power_cut_at_any_operation(tmp_path: Path, mode: str, most: int) -> None:
    states, tried, failures = cut(tmp_path, mode, most=most)
    assert states >= 200 and tried == min(states, 100_000 if faults.FULL else most)
    assert failures == []


@pytest.mark.parametrize("variant", ["nosync", "norecover"])
def test_a_lakehouse_without_a_safeguard_is_caught(tmp_path: Path, variant: str) -> None:
    _, _, failures = cut(tmp_path, "incremental", variant=variant, most=100)
    assert failures, f"the harness does not see what {variant} does"


@pytest.mark.parametrize("variant", ["sound", "noinherit"])
def test_a_kill_after_the_commit_and_later_a_power_cut(tmp_path: Path, variant: str) -> None:
    """The second run finds the sequence committed but by nobody synced: it must sync before it records it as done."""
    source = tmp_path / "source.db"
    victim.make_source(source)
    failures: list[str] = []
    tried = 0
    with faults.servers(tmp_path, 1) as (server,):
        for commit in range(victim.BATCHES + 1):
            home = tmp_path / f"home-{commit}"
            home.mkdir(mode=0o700)
            temporary = home / victim.TABLE / "_delta_log" / f"{commit:020d}.json#1"
            # unlink is what delta-rs does between the commit's link and our first sync of it.
            operations = record_killed(server, home, source, temporary)
            first = len(operations)
            operations += record(server, home, source, "incremental", variant)
            assert final(operations) == on_disk(home)
            states = list(crash_states(operations, since=first))
            chosen = faults.sample(states, 25 if variant == "sound" else 15)
            tried += len(chosen)
            failures += [f"commit {commit}: {failure}" for failure in judged(chosen, source, "incremental", variant)]
    print(f"killed, then cut/{variant}: {tried} states, {len(failures)} failures")
    assert tried > 40
    if variant == "sound":
        assert failures == []
    else:
        assert failures, "the harness does not see a commit that its heir did not sync"


def record_killed(server: faults.Server, home: Path, source: Path, at: Path) -> list[Operation]:
    """As `record`, of a run that dies when it unlinks `at`: one strace counts by path, so the record is made by rebuilding.

    strace's path filter would also filter the record. So the files that the dead run left are taken as unsynced ones.
    """
    options = ["-e", "trace=unlink", "-e", "inject=unlink:signal=KILL:when=1", "-P", str(at)]
    status, _ = server.run(home, source, "incremental", trace=Path(os.devnull), strace=options)
    assert status == -9
    committed = f"{victim.TABLE}/_delta_log/{at.name.removesuffix('#1')}"
    safe: list[Operation] = []
    open_: list[Operation] = []
    directories = ["."]
    for name, content in on_disk(home):
        # Its state, data files and earlier commits were synced by the dead run; the commit and its temporary name were not.
        operations = open_ if name in (committed, f"{committed}#1") else safe
        if content is None:
            operations.append(Operation("mkdir", name))
            directories.append(name)
        else:
            operations += [Operation("create", name), Operation("write", name, content)]
            operations += [Operation("sync", name)] if operations is safe else []
    if at.name.startswith("0" * 20):  # the log's directory is as new as the first commit
        log = Operation("mkdir", directories.pop())
        safe.remove(log)
        open_.insert(0, log)
    return [*safe, *(Operation("sync", directory) for directory in directories), *open_]
