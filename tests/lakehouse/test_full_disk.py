"""A full disk and a failing one, at every system call that writes: the run fails loudly or succeeds, and the next one heals.

Nothing is silent: a run that ends well has everything in the table, a run that does not says so with an error of ours (or
of the state database, which is the victim's own), never with a foreign exception.
"""

from __future__ import annotations

import shutil
from collections import Counter
from pathlib import Path

import pytest

from tests.lakehouse import faults, victim

pytestmark = [faults.needs_strace, pytest.mark.timeout(1200 if faults.FULL else 120)]

LOUD = {victim.TYPED_FULL, victim.TYPED_STORE, victim.TYPED_OTHER, victim.STATE}
NAMES = {
    victim.SOUND: "went on",
    victim.TYPED_FULL: "agent.disk_full",
    victim.TYPED_STORE: "internal.store",
    victim.TYPED_OTHER: "another code",
    victim.STATE: "state database",
    victim.UNTYPED: "foreign exception",
}


def effects(point: faults.Point) -> list[str]:
    """What can go wrong at a call; `…` is from there on, as on a disk that stays full."""
    if "sync" in point.call:
        return ["error=EIO"]
    if point.call in ("unlink", "ftruncate"):
        return ["error=EIO"]
    return ["error=ENOSPC", "error=ENOSPC…"]


def struck(scratch: Path, mode: str, most: int, *, variant: str = "sound") -> tuple[int, int, list[str], Counter[str]]:
    """How many faults there are, how many were tried, what went wrong, and what the runs said."""
    source = scratch / "source.db"
    victim.make_source(source)
    failures: list[str] = []
    outcomes: Counter[str] = Counter()
    with faults.servers(scratch) as workers:
        points = faults.enumerate_points(workers[0], scratch, source, mode, variant)
        chosen = [(point, effect) for point in points for effect in effects(point)]
        tried = faults.sample(chosen, most)
        hits = faults.strike_all(scratch, source, mode, variant, tried, workers)
        for (_, effect), hit in zip(tried, hits, strict=True):
            outcomes[NAMES.get(hit.status, str(hit.status))] += 1
            if hit.status == victim.SOUND:
                if (outcome := faults.verdict(hit.home, source, mode)) != "ok":
                    failures.append(f"{effect} at {hit}: silent: {outcome}")
            elif hit.status not in LOUD:
                failures.append(f"{effect} at {hit}: not an error of ours")
            elif "ENOSPC" in effect and ".parquet" in hit.point.what and hit.status != victim.TYPED_FULL:
                failures.append(f"{effect} at {hit}: {NAMES[hit.status]} instead of agent.disk_full")
            if (outcome := faults.restart(hit.home, source, mode, variant)) != "ok":
                failures.append(f"{effect} at {hit}: the next run: {outcome}")
            shutil.rmtree(hit.home)
    print(f"{mode}/{variant}: {len(chosen)} faults, {len(tried)} tried, {len(failures)} failures; {dict(outcomes)}")
    if variant == "sound" and any("not an error of ours" in failure for failure in failures):
        print(*(path.read_text()[-3000:] for path in scratch.glob("victims-*.err")))
    return len(chosen), len(tried), failures, outcomes


@pytest.mark.parametrize(("mode", "most"), [("incremental", 60), ("merge", 16), ("full", 16)])
def test_no_space_and_io_errors_at_writing_calls(tmp_path: Path, mode: str, most: int) -> None:
    points, tried, failures, outcomes = struck(tmp_path, mode, most)
    assert points > 150 and tried >= most
    assert outcomes["agent.disk_full"] and outcomes["internal.store"] and outcomes["state database"], outcomes
    assert failures == []


def test_a_sync_that_takes_no_notice_of_the_sequence_is_caught(tmp_path: Path) -> None:
    """The next run writes the batch again whose state could not be recorded."""
    _, _, failures, _ = struck(tmp_path, "incremental", 40, variant="naive")
    assert any("too many" in failure for failure in failures), failures
