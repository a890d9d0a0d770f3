"""What waits for the writer: bounded by samples and bytes, woken once a group."""

from __future__ import annotations

import asyncio
import gc
from contextlib import closing

import pytest

from daemon.errors import LabelConflictError, QueueFullError
from tests.daemon_fixtures import WAIT_SECONDS, HeldWriter, added, open_store, query, sample
from tests.running import wait_for

LARGE = 1 << 20


@pytest.fixture
def gate():
    gate = HeldWriter()
    yield gate
    gate.open()  # a test that failed must not leave the writer held


def test_an_event_loop_is_woken_once_a_group(tmp_path, gate):
    async def many(store) -> list[int]:
        loop = asyncio.get_running_loop()
        woken = 0
        plain = loop.call_soon_threadsafe

        def counted(*arguments, **more):
            nonlocal woken
            woken += 1
            return plain(*arguments, **more)

        loop.call_soon_threadsafe = counted  # type: ignore[method-assign]

        async def one(number: int) -> int:
            (stored,) = await store.add([sample(number)])
            return stored.seq

        waiting = [asyncio.ensure_future(one(number)) for number in range(100)]
        await asyncio.sleep(0)
        gate.open()
        seqs = await asyncio.gather(*waiting)
        assert woken == 1
        return list(seqs)

    with closing(open_store(tmp_path, on_commit=gate.on_commit)) as store:
        gate.hold(store)
        assert asyncio.run(many(store)) == [*range(2, 102)]
    assert gate.commits == [1, 100]


def test_what_is_done_already_is_awaited_at_once(tmp_path):
    async def late(acknowledgement) -> object:
        return await asyncio.wait_for(acknowledged(acknowledgement), 30)

    async def acknowledged(acknowledgement):
        return await acknowledgement

    with closing(open_store(tmp_path)) as store:
        done = store.add([sample(1)])
        first = done.result(WAIT_SECONDS)
        assert asyncio.run(late(done)) == first
        store.add([sample(2, "a")]).result(WAIT_SECONDS)
        with pytest.raises(LabelConflictError):
            asyncio.run(late(store.label("s-2", "b", replace=False)))


def test_a_wait_that_is_given_up_disturbs_nobody(tmp_path, gate, caplog):
    async def hang_up(store) -> None:
        async def one() -> object:
            return await store.add([sample(2)])

        given_up, other = asyncio.ensure_future(one()), asyncio.ensure_future(one())
        await asyncio.sleep(0)
        given_up.cancel()
        await asyncio.sleep(0)
        gate.open()
        assert await asyncio.wait_for(other, 10)
        assert given_up.cancelled()

    with closing(open_store(tmp_path, on_commit=gate.on_commit)) as store:
        gate.hold(store)
        asyncio.run(hang_up(store))
        added(store, sample(3))
    gc.collect()
    assert caplog.records == []
    assert query(tmp_path, "SELECT count(*) FROM samples") == [(4,)]


def test_a_loop_that_has_ended_does_not_stop_the_writer(tmp_path, gate):
    waiting: list[asyncio.Future[object]] = []

    async def leave(store) -> None:
        async def one() -> object:
            return await store.add([sample(2)])

        waiting.append(asyncio.ensure_future(one()))
        await asyncio.sleep(0)

    with closing(open_store(tmp_path, on_commit=gate.on_commit)) as store:
        gate.hold(store)
        asyncio.run(leave(store))
        gate.open()
        assert added(store, sample(3))[0].seq == 3
        assert waiting[0].cancelled()


def test_the_queue_is_bounded_in_bytes_too(tmp_path, gate):
    big = sample(features=bytes(LARGE))
    with closing(open_store(tmp_path, on_commit=gate.on_commit, queue_bytes=3 * LARGE)) as store:
        gate.hold(store)
        waiting = [store.add([big]), store.add([big])]
        with pytest.raises(QueueFullError, match=r"bytes of samples wait .* at most 3145728 may"):
            store.add([big])
        waiting.append(store.add([sample(1)]))
        gate.open()
        for acknowledgement in waiting:
            acknowledgement.result(WAIT_SECONDS)
        added(store, big, big, big, big)  # more than the queue holds, when nothing else waits


def test_an_error_of_one_request_in_a_group_is_its_own(tmp_path, gate):
    with closing(open_store(tmp_path, on_commit=gate.on_commit)) as store:
        gate.hold(store)
        before, refused, after = (
            store.add([sample(2, "a")]),
            store.label("s-1", "b", replace=False),
            store.add([sample(3, "b")]),
        )
        gate.open()
        assert [f.result(WAIT_SECONDS)[0].seq for f in (before, after)] == [2, 3]
        with pytest.raises(LabelConflictError):
            refused.result(WAIT_SECONDS)


def test_time_of_service_adds_up_over_restarts(tmp_path, monkeypatch):
    now = 1000.0
    monkeypatch.setattr("daemon.store.sample_rows.time.monotonic", lambda: now)
    with closing(open_store(tmp_path)) as store:
        now += 50.5
        added(store, sample(1))
    now = 3.0  # the machine has started again
    with closing(open_store(tmp_path)) as store:
        now += 10
        added(store, sample(2))
    assert query(tmp_path, "SELECT stored_at FROM samples") == [(50,), (60,)]
    assert query(tmp_path, "SELECT service_seconds FROM store_state") == [(60,)]


def test_time_of_service_is_kept_while_nobody_sends(tmp_path, monkeypatch):
    monkeypatch.setattr("daemon.store.writer._IDLE_SECONDS", 0.01)
    now = 1000.0
    monkeypatch.setattr("daemon.store.sample_rows.time.monotonic", lambda: now)
    with closing(open_store(tmp_path)):
        now += 90
        state = "SELECT service_seconds FROM store_state"
        wait_for(lambda: query(tmp_path, state) == [(90,)], "the time of service")
