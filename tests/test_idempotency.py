"""A request with a key is done once; its repeat gets the first answer, whatever happened since."""

from __future__ import annotations

import dataclasses
from contextlib import closing

import pytest

from daemon.errors import (
    BadShapeError,
    IdConflictError,
    KeyInUseError,
    KeyReusedError,
    StoreUnavailableError,
)
from daemon.store import idempotency, request_key
from tests.daemon_fixtures import WAIT_SECONDS, HeldWriter, added, open_store, query, sample
from tests.running import wait_for

ONE = [sample(1, "a"), sample(2, None)]


@pytest.fixture
def gate():
    gate = HeldWriter()
    yield gate
    gate.open()  # a test that failed must not leave the writer held


def tell(outcomes) -> bytes:
    return repr([outcome.seq for outcome in outcomes if hasattr(outcome, "seq")]).encode()


def send(store, key, samples):
    return store.add_once(samples, request_key(key, samples), tell)


def sent(store, key, samples):
    answer = send(store, key, samples).result(WAIT_SECONDS)
    return answer.body, answer.replayed


def keys(folder) -> list[str]:
    return [key for (key,) in query(folder, "SELECT key FROM idempotency ORDER BY number")]


def test_a_repeat_gets_the_first_answer_also_after_a_restart(tmp_path):
    with closing(open_store(tmp_path)) as store:
        assert sent(store, "k", ONE) == (b"[1, 2]", False)
        assert sent(store, "k", ONE) == (b"[1, 2]", True)
    with closing(open_store(tmp_path)) as store:
        assert sent(store, "k", ONE) == (b"[1, 2]", True)
        assert sent(store, "other", ONE) == (b"[3, 4]", False)
        assert store.counts.samples == 4


@pytest.mark.parametrize(
    "change",
    [{"features": b"other!"}, {"label": "b"}, {"id": "x"}, {"source": "s"}, {"ts": "1"}],
)
def test_another_request_under_the_key_is_refused(tmp_path, change):
    with closing(open_store(tmp_path)) as store:
        sent(store, "k", ONE)
        other = [dataclasses.replace(ONE[0], **change), ONE[1]]
        for samples in (other, ONE[:1], ONE[::-1]):
            with pytest.raises(KeyReusedError):
                sent(store, "k", samples)
        assert store.counts.samples == 2
        assert added(store, sample(3))[0].seq == 3


def test_a_refused_entry_is_part_of_what_was_asked():
    refused = BadShapeError("too short")
    alone, with_it = request_key("k", ONE), request_key("k", [*ONE, refused])
    assert alone.fingerprint != with_it.fingerprint
    assert with_it == request_key("k", [*ONE, BadShapeError("said otherwise")])


def test_a_repeat_while_the_first_is_being_written_is_told_to_wait(tmp_path, gate):
    with closing(open_store(tmp_path, on_commit=gate.on_commit)) as store:
        gate.hold(store)
        first = send(store, "k", ONE)
        with pytest.raises(KeyInUseError) as caught:
            send(store, "k", ONE)
        assert caught.value.retry_after_seconds
        gate.open()
        assert first.result(WAIT_SECONDS).body == b"[2, 3]"
        assert sent(store, "k", ONE) == (b"[2, 3]", True)


def test_what_kept_nothing_may_run_again(tmp_path):
    with closing(open_store(tmp_path)) as store:
        added(store, sample(1, "a", id="x"))
        conflict = [sample(2, "a", id="x")]
        answer = send(store, "k", conflict).result(WAIT_SECONDS)
        assert answer.body is None
        assert isinstance(answer.outcomes[0], IdConflictError)
        assert keys(tmp_path) == []
        assert sent(store, "k", ONE) == (b"[2, 3]", False)


def test_a_failed_transaction_keeps_neither_samples_nor_key(tmp_path):
    with closing(open_store(tmp_path)) as store:
        query(tmp_path, "ALTER TABLE counts RENAME TO lost")
        with pytest.raises(StoreUnavailableError):
            sent(store, "k", ONE)
        query(tmp_path, "ALTER TABLE lost RENAME TO counts")
        wait_for(lambda: store.unavailable is None, "the table to be found")
        assert keys(tmp_path) == []
        assert sent(store, "k", ONE) == (b"[1, 2]", False)


def test_the_newest_keys_are_remembered(tmp_path, monkeypatch):
    monkeypatch.setattr(idempotency, "KEYS_KEPT", 3)
    with closing(open_store(tmp_path)) as store:
        for number in range(5):
            sent(store, f"k{number}", [sample(number)])
        assert keys(tmp_path) == ["k2", "k3", "k4"]
        assert sent(store, "k1", [sample(1)]) == (b"[6]", False)
        assert sent(store, "k4", [sample(4)]) == (b"[5]", True)


def test_equal_content_is_one_sample_where_that_is_asked_for(tmp_path):
    plain = sample(1, "a")
    others = [
        sample(1, "b"),
        sample(1, None),
        sample(1, "a", source="elsewhere"),
        sample(2, "a"),
        dataclasses.replace(plain, dtype="float32"),
    ]
    with closing(open_store(tmp_path, drop_duplicates=True)) as store:
        assert added(store, plain, plain, *others) == [
            ("s-1", 1, False),
            ("s-1", 1, True),
            *[(f"s-{seq}", seq, False) for seq in range(2, 7)],
        ]
        assert added(store, *others, plain)[-1] == ("s-1", 1, True)
        assert added(store, sample(1, "a", id="x")) == [("x", 7, False)]  # its id says it is new
        assert sent(store, "k", [plain]) == (b"[8]", False)  # and so does a key
        store.withdraw("s-4").result(WAIT_SECONDS)
        assert added(store, others[2]) == [("s-9", 9, False)]
    with closing(open_store(tmp_path, drop_duplicates=True)) as store:
        assert added(store, plain)[0].duplicate
        assert store.counts.samples == 8
    with closing(open_store(tmp_path)) as store:
        assert not added(store, plain)[0].duplicate  # a still sensor sends equal readings


def test_a_digest_that_two_contents_share_drops_neither(tmp_path, monkeypatch):
    with closing(open_store(tmp_path, drop_duplicates=True)) as store:
        monkeypatch.setattr(store._rows, "content_digest", lambda sample: 7)
        assert [found.duplicate for found in added(store, sample(1), sample(2), sample(2))] == [
            False,
            False,
            True,
        ]
