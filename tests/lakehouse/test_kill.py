"""Kill -9 at every system call that writes: after a restart no row is lost and none is there twice."""

from __future__ import annotations

import shutil
import signal
from collections import Counter
from pathlib import Path

import pytest

from tests.lakehouse import faults, victim

pytestmark = [faults.needs_strace, pytest.mark.timeout(1200 if faults.FULL else 120)]


def killed(
    scratch: Path, mode: str, *, variant: str = "sound", most: int = 10_000
) -> tuple[list[faults.Hit], list[str], int]:
    """The hits, what went wrong after them, and how many points there are."""
    source = scratch / "source.db"
    victim.make_source(source)
    hits: list[faults.Hit] = []
    failures: list[str] = []
    with faults.servers(scratch) as workers:
        points = faults.enumerate_points(workers[0], scratch, source, mode, variant)
        chosen = [(point, "signal=KILL") for point in faults.sample(points, most)]
        for hit in faults.strike_all(scratch, source, mode, variant, chosen, workers):
            hits.append(hit)
            outcome = faults.restart(hit.home, source, mode, variant)
            if outcome != "ok":
                failures.append(f"killed at {hit}: {outcome}")
            shutil.rmtree(hit.home)
    dead = [hit for hit in hits if hit.status == -signal.SIGKILL]
    print(
        f"{mode}/{variant}: {len(points)} points, {len(hits)} struck, {len(dead)} killed, {len(failures)} failures;",
        dict(Counter(hit.point.call for hit in dead)),
    )
    assert [str(hit) for hit in hits if hit not in dead] == [], "some were not killed where they should"
    return hits, failures, len(points)


def test_killed_at_every_writing_call_of_an_incremental_sync(tmp_path: Path) -> None:
    hits, failures, points = killed(tmp_path, "incremental")
    assert points > 40 and len(hits) == points
    struck = Counter(hit.point.call for hit in hits)
    assert {"openat", "write", "pwrite64", "fsync", "fdatasync", "mkdir", "unlink"} <= set(struck)
    assert struck["linkat"] == victim.BATCHES + 1, "every commit is one link"
    assert failures == []


@pytest.mark.parametrize("mode", ["merge", "full"])
def test_killed_at_writing_calls_of_the_other_modes(tmp_path: Path, mode: str) -> None:
    hits, failures, points = killed(tmp_path, mode, most=16)
    assert points > 40 and len(hits) >= 16
    assert failures == []


def test_a_sync_that_does_not_ask_for_the_sequence_is_caught(tmp_path: Path) -> None:
    _, failures, _ = killed(tmp_path, "incremental", variant="naive", most=45)
    assert failures, "the harness does not see rows that are there twice"
    assert all("lost 0, too many 12" in failure for failure in failures), failures[:3]
