"""A part of the server is well while it gets on: real threads, held up and let go."""

from __future__ import annotations

import functools
import threading
import time
from contextlib import closing

from daemon.supervision.pulse import PredictThread, Pulse
from tests.daemon_fixtures import WAIT_SECONDS, HeldWriter, open_store, query, sample
from tests.running import wait_for as wait_for_long

wait_for = functools.partial(wait_for_long, seconds=10)

SHORT = 0.1


def predict_pulse(thread: PredictThread) -> Pulse:
    return Pulse(lambda: thread.submit(int), lambda: thread.done)


def test_a_predictor_that_is_stuck_is_seen_and_so_is_its_recovery():
    thread, go = PredictThread(), threading.Event()
    try:
        pulse = predict_pulse(thread)
        for _ in range(3):
            assert pulse.beats(SHORT)
        thread.submit(go.wait)
        wait_for(lambda: not pulse.beats(SHORT), "doubt")
        go.set()
        wait_for(lambda: pulse.beats(SHORT), "trust")
    finally:
        go.set()
        thread.shutdown()
    assert not pulse.beats(SHORT)


def test_a_long_queue_is_no_bad_sign_and_requests_that_were_given_up_are_no_good_one():
    thread, go = PredictThread(), threading.Event()
    try:
        pulse = predict_pulse(thread)
        requests = [thread.submit(time.sleep, SHORT / 4) for _ in range(20)]
        for request in requests:  # our own task comes after all of them
            assert pulse.beats(SHORT)
            request.result(WAIT_SECONDS)
        thread.submit(go.wait)
        waiting = [thread.submit(int) for _ in range(50)]

        def doubt() -> bool:
            if waiting:
                waiting.pop().cancel()
            return not pulse.beats(SHORT)

        wait_for(doubt, "doubt")
    finally:
        go.set()
        thread.shutdown()


def test_a_writer_that_is_stuck_is_seen_and_one_that_has_nothing_to_do_is_well(tmp_path):
    held = HeldWriter()
    with closing(open_store(tmp_path, on_commit=held.on_commit)) as store:
        pulse = Pulse(store.tick)
        for _ in range(3):
            assert pulse.beats(SHORT)
            wait_for(store.tick().done, "the tick")
        held.hold(store)
        wait_for(lambda: not pulse.beats(SHORT), "doubt")
        held.open()
        wait_for(lambda: pulse.beats(SHORT), "trust")
    assert not pulse.beats(SHORT)


def test_ticks_write_nothing_and_delay_no_acknowledgement(tmp_path):
    with closing(open_store(tmp_path)) as store:
        for value in range(20):
            store.tick()
            store.add([sample(value)]).result(WAIT_SECONDS)
            store.tick().result(WAIT_SECONDS)
    assert query(tmp_path, "SELECT count(*) FROM samples") == [(20,)]
