"""The cancel signal: once, from any thread, and never for the next user of what was cancelled."""

from __future__ import annotations

import asyncio
import threading

import pytest

from hfagent.foundation.cancellation import CancelToken
from hfagent.foundation.errors import Cancelled

WAIT_S = 20.0


def test_cancelled_once_and_for_ever() -> None:
    token = CancelToken()
    calls: list[int] = []
    token.raise_if_cancelled()
    assert (token.cancelled, token.wait(0)) == (False, False)
    with token.on_cancel(lambda: calls.append(1)):
        token.cancel()
        token.cancel()
    assert calls == [1]
    assert (token.cancelled, token.wait(WAIT_S)) == (True, True)
    with pytest.raises(Cancelled) as caught:
        token.raise_if_cancelled()
    assert caught.value.code == "cancelled"


def test_a_callback_belongs_to_its_block() -> None:
    token = CancelToken()
    calls: list[str] = []
    with token.on_cancel(lambda: calls.append("ended")):
        pass
    with token.on_cancel(lambda: calls.append("outer")), token.on_cancel(lambda: calls.append("inner")):
        token.cancel()
    with token.on_cancel(lambda: calls.append("late")):
        assert calls == ["outer", "inner", "late"]
    assert calls == ["outer", "inner", "late"]


def test_a_failing_callback_does_not_stop_the_others(caplog: pytest.LogCaptureFixture) -> None:
    token = CancelToken()
    calls: list[int] = []
    with token.on_cancel(lambda: calls.append(1 // 0)), token.on_cancel(lambda: calls.append(2)):
        token.cancel()
    assert calls == [2]
    assert "a cancel callback failed" in caplog.text


def test_the_block_ends_after_its_callback() -> None:
    """Else the callback of an ended block would cancel what the connection does next, for somebody else."""
    token = CancelToken()
    entered, release = threading.Event(), threading.Event()
    order: list[str] = []

    def callback() -> None:
        entered.set()
        assert release.wait(WAIT_S)
        order.append("callback")

    def work() -> None:
        with token.on_cancel(callback):
            assert entered.wait(WAIT_S)
        order.append("block ended")

    worker = threading.Thread(target=work)
    canceller = threading.Thread(target=token.cancel)
    worker.start()
    canceller.start()
    assert entered.wait(WAIT_S)
    worker.join(0.05)
    assert worker.is_alive(), "the block ended while its callback ran"
    release.set()
    worker.join(WAIT_S)
    canceller.join(WAIT_S)
    assert order == ["callback", "block ended"]


def test_cancelling_from_inside_the_block_does_not_wait_for_itself() -> None:
    token = CancelToken()
    calls: list[int] = []

    def callback() -> None:
        with token.on_cancel(lambda: calls.append(1)):  # already cancelled: at once
            pass

    with token.on_cancel(callback):
        token.cancel()
    assert calls == [1]


def test_a_block_on_an_event_loop_does_not_wait() -> None:
    token = CancelToken()
    entered, release = threading.Event(), threading.Event()

    def callback() -> None:
        entered.set()
        assert release.wait(WAIT_S)

    async def main() -> None:
        with token.on_cancel(callback):
            threading.Thread(target=token.cancel, daemon=True).start()
            assert await asyncio.to_thread(entered.wait, WAIT_S)
        assert not release.is_set()  # got here while the callback still runs
        release.set()

    asyncio.run(main())


def test_many_threads_cancel_at_once() -> None:
    token = CancelToken()
    calls: list[int] = []
    start = threading.Barrier(8)

    def cancel() -> None:
        start.wait(WAIT_S)
        token.cancel()

    with token.on_cancel(lambda: calls.append(1)):
        threads = [threading.Thread(target=cancel) for _ in range(8)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(WAIT_S)
    assert calls == [1]
