"""Requests with a key are answered once: the answer is kept in the transaction of what it tells of.

Only answers of requests that kept something are kept; one that changed nothing may run again. The
newest 10,000 keys are remembered.
"""

from __future__ import annotations

import hashlib
import sqlite3
from collections.abc import Sequence
from dataclasses import dataclass

import msgspec

from daemon.errors import KeyReusedError, RequestError
from daemon.ingest.sample import Sample
from daemon.store.sample_rows import Outcome

KEYS_KEPT = 10_000


@dataclass(frozen=True)
class RequestKey:
    """A request's key and what it asked for.

    Args:
        key: The client's own, unique for each request.
        fingerprint: Of the request's content.
    """

    key: str
    fingerprint: bytes


@dataclass(frozen=True)
class KeyedAnswer:
    """The answer to a request with a key.

    Args:
        body: As it was first given; None: nothing was kept, and so neither is an answer.
        outcomes: What became of each sample; none where nothing was done.
        replayed: The request was answered before; nothing was kept now.
    """

    body: bytes | None
    outcomes: list[Outcome]
    replayed: bool


def request_key(key: str, entries: Sequence[Sample | RequestError]) -> RequestKey:
    """A key with the fingerprint of a decoded request.

    Of the samples and not of the bytes: a client that tries again may choose other spaces or
    another boundary, and means the same.
    """
    found = hashlib.blake2b(digest_size=16)
    for entry in entries:
        told = (
            (entry.features, entry.dtype, entry.label, entry.id, entry.source, entry.ts)
            if isinstance(entry, Sample)
            else (entry.code,)
        )
        found.update(msgspec.msgpack.encode(told))
    return RequestKey(key, found.digest())


def first_answer(connection: sqlite3.Connection, request: RequestKey) -> bytes | None:
    """What this request was answered before, if it was.

    Raises:
        KeyReusedError: Another request had this key.
    """
    row = connection.execute(
        "SELECT fingerprint, answer FROM idempotency WHERE key = ?", (request.key,)
    ).fetchone()
    if row is None:
        return None
    fingerprint, answer = row
    if fingerprint != request.fingerprint:
        raise KeyReusedError("this Idempotency-Key belongs to a request with other content")
    return bytes(answer)


def keep_answer(
    connection: sqlite3.Connection, request: RequestKey, answer: bytes, last_seq: int
) -> None:
    """Remember an answer, and forget the oldest beyond the bound.

    Args:
        connection: In a transaction.
        request: What was answered.
        answer: As it was given.
        last_seq: The newest row that it tells of: the answer goes when that row has gone.
    """
    cursor = connection.execute(
        "INSERT INTO idempotency (key, fingerprint, last_seq, answer) VALUES (?, ?, ?, ?)",
        (request.key, request.fingerprint, last_seq, answer),
    )
    connection.execute(
        "DELETE FROM idempotency WHERE number <= ?", ((cursor.lastrowid or 0) - KEYS_KEPT,)
    )
