"""The bridge to blocking code: nobody waits for a thread that hangs, and nothing is left behind."""

from __future__ import annotations

import asyncio
import subprocess
import sys
import threading
from collections import Counter

import pytest

from hfagent.foundation.cancellation import CancelToken
from hfagent.foundation.clock import Deadline
from hfagent.foundation.errors import AgentError, Cancelled, SourceError
from hfagent.services import workers as module
from hfagent.services.workers import Lane, LaneClosed, Workers
from tests.services.fakes import scenario, until


@pytest.fixture
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "GRACE_S", 0.05)
    monkeypatch.setattr(module, "IDLE_S", 0.05)


@scenario
async def test_work_returns_its_result_or_its_error() -> None:
    workers = Workers()
    lane = workers.lane("x")
    assert await workers.run(lane, lambda: 42) == 42
    with pytest.raises(ZeroDivisionError):
        await workers.run(lane, lambda: 1 // 0)
    with pytest.raises(RuntimeError, match="StopIteration"):
        await workers.run(lane, lambda: next(iter(())))
    with pytest.raises(SystemExit):
        await workers.run(lane, lambda: sys.exit(3))
    assert await workers.run(lane, lambda: 43) == 43
    with pytest.raises(TimeoutError):  # the work's own, not the deadline's
        await workers.run(lane, lambda: (_ for _ in ()).throw(TimeoutError), deadline=Deadline(10))
    workers.close()


@scenario
async def test_every_waiting_piece_of_work_gets_a_thread_while_there_are_some() -> None:
    """Submitted back to back, before the idle thread had a chance to look: none may wait behind another that hangs."""
    workers = Workers()
    lane = workers.lane("x", threads=8)
    await workers.run(lane, lambda: None)
    await until(lambda: lane._idle == 1, "an idle thread")
    gate, running = threading.Event(), threading.Semaphore(0)

    def work() -> None:
        running.release()
        gate.wait(20)

    tasks = [asyncio.ensure_future(workers.run(lane, work)) for _ in range(5)]
    for _ in range(5):
        await until(lambda: running.acquire(blocking=False), "all five run at the same time")
    assert lane.threads == 5
    gate.set()
    await asyncio.gather(*tasks)
    workers.close()


@scenario
async def test_threads_are_bounded_and_the_rest_waits_its_turn() -> None:
    workers = Workers()
    lane = workers.lane("x", threads=3)
    order: list[int] = []
    gate = threading.Event()

    def work(number: int) -> None:
        gate.wait(20)
        order.append(number)

    tasks = [asyncio.ensure_future(workers.run(lane, lambda n=n: work(n))) for n in range(10)]
    await asyncio.sleep(0.01)
    assert lane.threads == 3
    gate.set()
    await asyncio.gather(*tasks)
    assert sorted(order) == list(range(10))
    workers.close()


@scenario
async def test_threads_end_when_idle_and_when_the_lane_closes(quick: None) -> None:
    workers = Workers()
    lane = workers.lane("x", threads=4)
    await asyncio.gather(*(workers.run(lane, lambda: None) for _ in range(4)))
    await until(lambda: lane.threads == 0, "idle threads end")
    assert await workers.run(lane, lambda: "again") == "again"
    workers.close()
    await until(lambda: lane.threads == 0, "the lane's threads end")
    with pytest.raises(LaneClosed) as caught:
        await workers.run(lane, lambda: None)
    assert caught.value.code == "agent.draining"
    assert caught.value.hint == "repeat the request"


@scenario
async def test_what_was_queued_before_the_close_still_runs() -> None:
    workers = Workers()
    lane = workers.lane("x")
    gate = threading.Event()
    first = asyncio.ensure_future(workers.run(lane, lambda: gate.wait(20)))
    second = asyncio.ensure_future(workers.run(lane, lambda: "done"))
    await asyncio.sleep(0)
    workers.drop("x")
    gate.set()
    assert await first and await second == "done"


@scenario
async def test_work_that_raises_takes_no_thread_with_it(caplog: pytest.LogCaptureFixture) -> None:
    lane = Lane("x", threads=1)
    lane.submit(lambda: 1 // 0)
    done = threading.Event()
    lane.submit(done.set)
    await until(done.is_set, "the next piece of work")
    assert "work in the lane x failed" in caplog.text
    lane.close()


@scenario
async def test_no_thread_to_be_had_is_an_error_and_no_leak(monkeypatch: pytest.MonkeyPatch) -> None:
    workers = Workers()
    lane = workers.lane("x", threads=2)

    def refuse(self: threading.Thread) -> None:
        raise RuntimeError("can't start new thread")

    with monkeypatch.context() as patch:
        patch.setattr(threading.Thread, "start", refuse)
        with pytest.raises(AgentError) as caught:
            await workers.run(lane, lambda: None)
        assert caught.value.code == "capacity.overloaded"
    assert lane.threads == 0
    assert await workers.run(lane, lambda: 1) == 1
    workers.close()


@scenario
async def test_a_cancelled_caller_is_answered_while_the_thread_winds_down() -> None:
    workers = Workers()
    lane, gate, token, begun = workers.lane("x"), threading.Event(), CancelToken(), threading.Event()

    def work() -> None:
        begun.set()
        gate.wait(20)

    task = asyncio.ensure_future(workers.run(lane, work, cancel=token))
    await until(begun.is_set, "the work begins")
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert not gate.is_set()  # answered though the work goes on
    await until(lambda: token.cancelled, "the token fires")
    gate.set()
    workers.close()


@scenario
async def test_the_token_fires_in_another_thread_than_the_loops() -> None:
    workers = Workers()
    lane, token, begun, fired_in = workers.lane("x"), CancelToken(), threading.Event(), list[str]()

    def work() -> None:
        with token.on_cancel(lambda: fired_in.append(threading.current_thread().name)):
            begun.set()
            token.wait(20)

    task = asyncio.ensure_future(workers.run(lane, work, cancel=token))
    await until(begun.is_set, "the work begins")
    task.cancel()
    await asyncio.gather(task, return_exceptions=True)
    await until(lambda: bool(fired_in), "the server is told")
    assert fired_in[0] != threading.main_thread().name
    workers.close()


@scenario
async def test_after_the_deadline_comes_cancel_then_grace_then_abort(quick: None) -> None:
    workers = Workers()
    lane, token, gate = workers.lane("x"), CancelToken(), threading.Event()
    events: list[str] = []

    def work() -> None:
        with token.on_cancel(lambda: events.append("cancel")):
            gate.wait(20)

    def abort() -> None:
        events.append("abort")
        gate.set()

    with pytest.raises(SourceError) as caught:
        await workers.run(lane, work, cancel=token, deadline=Deadline(0.05), abort=abort, what="the query")
    assert caught.value.code == "timeout.total"
    assert caught.value.message == "the query did not finish within 0.05 s"
    await until(lambda: events == ["cancel", "abort"], "cancel, then abort")
    workers.close()


@scenario
async def test_work_that_ends_in_its_grace_is_not_aborted_and_its_time_limit_is_told() -> None:
    """The driver says "cancelled"; the caller did not cancel anything, so that is not what it hears."""
    workers = Workers()
    lane, token, aborted = workers.lane("x"), CancelToken(), list[int]()

    def work() -> None:
        token.wait(20)
        raise Cancelled("cancelled by the server")

    with pytest.raises(SourceError) as caught:
        await workers.run(lane, work, cancel=token, deadline=Deadline(0.02), abort=lambda: aborted.append(1))
    assert caught.value.code == "timeout.total"
    assert not aborted

    def late() -> str:
        CancelToken().wait(0.05)
        return "late, but here"

    assert await workers.run(lane, late, deadline=Deadline(0.02)) == "late, but here"
    workers.close()


@scenario
async def test_somebody_elses_cancel_ends_the_call_though_the_driver_does_not_listen(quick: None) -> None:
    workers = Workers()
    lane, token, gate, begun = workers.lane("x"), CancelToken(), threading.Event(), threading.Event()

    def work() -> None:
        begun.set()
        gate.wait(20)

    task = asyncio.ensure_future(workers.run(lane, work, cancel=token, abort=gate.set))
    await until(begun.is_set, "the work begins")
    threading.Thread(target=token.cancel).start()
    with pytest.raises(Cancelled):
        await task
    await until(gate.is_set, "the connection is torn down")
    workers.close()


@scenario
async def test_work_that_has_not_begun_when_its_caller_goes_never_does() -> None:
    workers = Workers()
    lane, gate, ran = workers.lane("x"), threading.Event(), list[str]()
    first = asyncio.ensure_future(workers.run(lane, lambda: gate.wait(20)))
    await asyncio.sleep(0)
    token = CancelToken()
    second = asyncio.ensure_future(workers.run(lane, lambda: ran.append("second"), cancel=token))
    await asyncio.sleep(0)
    second.cancel()
    await asyncio.gather(second, return_exceptions=True)
    await until(lambda: token.cancelled, "the token fires")
    with pytest.raises(SourceError):
        await workers.run(lane, lambda: ran.append("third"), deadline=Deadline(0.01))
    gate.set()
    await first
    await workers.run(lane, lambda: None)
    assert ran == []
    workers.close()


@scenario
async def test_a_call_to_the_store_ends_whatever_happens_to_its_caller() -> None:
    workers = Workers()
    lane, gate, ran = workers.lane("x"), threading.Event(), list[str]()
    first = asyncio.ensure_future(workers.call(lane, lambda: gate.wait(20)))
    second = asyncio.ensure_future(workers.call(lane, lambda: ran.append("second")))
    await asyncio.sleep(0)
    second.cancel()
    await asyncio.gather(second, return_exceptions=True)
    gate.set()
    await first
    await workers.call(lane, lambda: None)
    assert ran == ["second"]
    workers.close()


@scenario
async def test_a_lane_full_of_hung_threads_delays_no_other_lane() -> None:
    workers = Workers()
    bad, good = workers.lane("bad", threads=4), workers.lane("good", threads=4)
    gate, done = threading.Event(), Counter[str]()
    stuck = [asyncio.ensure_future(workers.run(bad, lambda: gate.wait(30))) for _ in range(20)]
    await until(lambda: bad.threads == 4, "the bad lane is full")
    for _ in range(200):
        await workers.run(good, lambda: None)
        done["good"] += 1
    assert done["good"] == 200
    assert not any(task.done() for task in stuck)
    gate.set()
    await asyncio.gather(*stuck)
    workers.close()


@scenario
async def test_apart_waits_for_no_lane() -> None:
    workers = Workers()
    assert await workers.apart(lambda: 7) == 7
    with pytest.raises(ZeroDivisionError):
        await workers.apart(lambda: 1 // 0)
    assert threading.main_thread() is threading.current_thread()


def test_a_stuck_thread_does_not_keep_the_process() -> None:
    code = """
import asyncio, threading
from hfagent.services.workers import Workers
async def main():
    workers = Workers()
    never = threading.Event()
    for place in ("a", "b"):
        asyncio.ensure_future(workers.run(workers.lane(place), never.wait))
    asyncio.ensure_future(workers.apart(never.wait))
    await asyncio.sleep(0.1)
    print("leaving")
asyncio.run(main())
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=30, check=False)
    assert (done.returncode, done.stdout) == (0, "leaving\n"), done.stderr
