"""What a client may take of the server: time, bytes, connections; and what it is told."""

from __future__ import annotations

import time

import pytest

from tests.http_server import BIG_BYTES, LIMIT_BYTES, Client, Served, served
from tests.running import wait_for

DEADLINE = 0.3


@pytest.fixture(scope="module")
def server():
    with served(linger_seconds=0.5) as made:
        yield made


@pytest.fixture(scope="module")
def hasty():
    """Every deadline is short."""
    with served(
        header_seconds=DEADLINE, body_seconds=DEADLINE, idle_seconds=DEADLINE, linger_seconds=0.2
    ) as made:
        yield made


def refusal(client: Client, status: int, code: str) -> None:
    answer = client.answer()
    assert (answer.status, answer.error["code"]) == (status, code)
    assert answer.headers["connection"] == "close"
    assert ("retry-after" in answer.headers) == (status in (429, 503))
    assert client.closed()


def test_requests_follow_one_another_on_a_connection(server: Served) -> None:
    with Client(server) as client:
        for size in (3, 0, 100_000):
            assert client.post(size).answer().body == str(size).encode()
        client.post(1).post(2)  # pipelined
        assert [client.answer().body, client.answer().body] == [b"1", b"2"]
        assert client.post(4, "Connection: close\r\n").answer().headers["connection"] == "close"
        assert client.closed()


def test_a_body_of_one_byte_chunks_is_read(server: Served) -> None:
    with Client(server) as client:
        head = b"POST /samples HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n"
        client.send(head + b"1\r\nx\r\n" * 50_000 + b"0\r\n\r\n")
        assert client.answer().body == b"50000"


@pytest.mark.parametrize(
    ("sent", "part"),
    [
        (b"POST /samples HT", "head"),
        (b"POST /samples HTTP/1.1\r\nHost: x\r\n", "head"),
        (b"POST /samples HTTP/1.1\r\nHost: x\r\nContent-Length: 9\r\n\r\n", "body"),
        (b"POST /samples HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n1\r\n", "body"),
    ],
)
def test_what_does_not_arrive_in_time_is_told_so(hasty: Served, sent: bytes, part: str) -> None:
    before = hasty.refused[f"{part}_timeout"]
    with Client(hasty) as client:
        began = time.monotonic()
        client.send(sent)
        refusal(client, 408, "too_slow")
        assert 0.9 * DEADLINE < time.monotonic() - began < DEADLINE + 5
    assert hasty.refused[f"{part}_timeout"] == before + 1


def test_a_trickle_does_not_put_off_the_deadline(hasty: Served) -> None:
    with Client(hasty) as client:
        client.send(b"POST /samples HTTP/1.1\r\nHost: x\r\nContent-Length: 1000\r\n\r\n")
        began = time.monotonic()
        while time.monotonic() - began < 5 * DEADLINE:
            try:
                client.send(b"x")
            except OSError:
                break
            time.sleep(DEADLINE / 10)
        else:
            pytest.fail("a byte now and then kept the connection")
        disconnects = wait_for(lambda: hasty.disconnects, "the app to be told")
        assert disconnects >= 1


def test_the_app_is_given_its_time(hasty: Served) -> None:
    """The deadlines are for clients: an answer may take longer than all of them."""
    with Client(hasty) as client:
        client.send(b"GET /held HTTP/1.1\r\nHost: x\r\n\r\n")
        time.sleep(3 * DEADLINE)
        hasty.hold.set()
        assert client.answer().body == b"held"


@pytest.mark.parametrize("sent", [b"", b"\r\n", b"GET /none HTTP/1.1\r\nHost: x\r\n\r\n"])
def test_an_idle_connection_is_closed(hasty: Served, sent: bytes) -> None:
    with Client(hasty) as client:
        client.send(sent)
        if len(sent) > 2:
            assert client.answer().status == 404
        assert client.closed()


def test_who_does_not_read_is_cut_off(hasty: Served) -> None:
    before = hasty.refused["slow_reader"]
    with Client(hasty) as client:
        client.send(b"GET /big HTTP/1.1\r\nHost: x\r\n\r\n")
        wait_for(lambda: hasty.refused["slow_reader"] > before, "the cut")
    with Client(hasty) as client:
        client.send(b"GET /big HTTP/1.1\r\nHost: x\r\n\r\n")
        assert len(client.answer().body) == BIG_BYTES  # who reads gets all of it


@pytest.mark.parametrize(
    "headers",
    [
        "".join(f"A{n}: b\r\n" for n in range(101)),
        "A: " + "b" * (16 << 10) + "\r\n",
        "A: " + "b" * (2 << 20),  # without an end
        "A: b\r\n" * 100_000,
    ],
)
def test_headers_that_are_too_large_are_refused(server: Served, headers: str) -> None:
    with Client(server) as client:
        client.send(f"GET / HTTP/1.1\r\nHost: x\r\n{headers}".encode())
        if len(headers) < 1 << 20:
            client.send(b"\r\n")
        refusal(client, 431, "headers_too_large")


def test_a_url_counts_as_headers_do(server: Served) -> None:
    with Client(server) as client:
        client.send(b"GET /" + b"x" * (17 << 10) + b" HTTP/1.1\r\nHost: x\r\n\r\n")
        refusal(client, 431, "headers_too_large")


@pytest.mark.parametrize(
    "sent",
    [
        b"\x16\x03\x01\x00\xa5\x01",
        b"GET / HTTP/1.1\r\nno colon\r\n\r\n",
        b"POST / HTTP/1.1\r\nContent-Length: 3\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
        b"POST / HTTP/1.1\r\nTransfer-Encoding: chunked\r\nContent-Length: 3\r\n\r\n0\r\n\r\n",
        b"POST /samples HTTP/1.1\r\nContent-Length: 3\r\nContent-Length: 4\r\n\r\nabcd",
        b"POST /samples HTTP/1.1\r\nContent-Length: -1\r\n\r\n",
        b"POST /samples HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\nzz\r\n",
    ],
)
def test_what_is_no_request_gets_a_400_of_our_shape(server: Served, sent: bytes) -> None:
    with Client(server) as client:
        client.send(sent)
        refusal(client, 400, "bad_http")


def test_a_bad_request_behind_a_good_one_does_not_take_its_answer(server: Served) -> None:
    with Client(server) as client:
        client.send(b"GET /none HTTP/1.1\r\nHost: x\r\n\r\nGET / HTTP/9\r\n\r\n")
        assert client.answer().status == 404
        assert client.closed()


def test_an_answer_is_not_taken_for_that_of_the_request_behind() -> None:
    with served() as server, Client(server) as client:
        head = b"POST /samples HTTP/1.1\r\nHost: x\r\nContent-Length: 20\r\n\r\n"
        client.send(b"GET /held HTTP/1.1\r\nHost: x\r\n\r\n" + head + bytes(10))
        server.hold.set()
        assert client.answer().body == b"held"
        assert client.send(bytes(10)).answer().body == b"20"


def test_a_body_that_turns_bad_behind_a_good_request_waits_its_turn(server: Served) -> None:
    with Client(server) as client:
        head = b"POST /samples HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\n"
        client.send(b"GET /none HTTP/1.1\r\nHost: x\r\n\r\n" + head + b"zz\r\n")
        assert client.answer().status == 404
        refusal(client, 400, "bad_http")


@pytest.mark.parametrize("more", ["", "Connection: close\r\n"])
def test_who_is_refused_while_still_sending_gets_the_answer(server: Served, more: str) -> None:
    """The body is far larger than what the kernel holds; a client that only then reads sees 413."""
    with Client(server) as client:
        assert client.post(24 * LIMIT_BYTES, more).answer().status == 413
        if more:
            assert client.closed()
        else:
            assert client.post(3).answer().status == 200


def test_a_refused_body_is_not_read_for_ever() -> None:
    with served(message_bytes=4 << 20) as server, Client(server) as client:
        head = b"POST /samples HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n"
        client.send(head)
        sent = 0
        try:
            while sent < 64 << 20:
                client.send(b"10000\r\n" + bytes(1 << 16) + b"\r\n")
                sent += 1 << 16
        except OSError:
            pass
        assert 4 << 20 <= sent < 48 << 20
        assert server.refused["body"] == 1


def test_an_address_has_so_many_connections_and_another_has_its_own() -> None:
    with served(address_connections=3, linger_seconds=0.2) as server:
        clients = [Client(server) for _ in range(3)]
        assert [client.post().answer().status for client in clients] == [200] * 3
        with Client(server) as fourth:
            refusal(fourth, 429, "too_many_connections")
        with Client(server, "127.0.0.2") as other:
            assert other.post().answer().status == 200
        clients.pop().socket.close()
        wait_for(lambda: server.connections.of("127.0.0.1") == 2, "a place")
        with Client(server) as again:
            assert again.post().answer().status == 200
        for client in clients:
            client.socket.close()
        wait_for(lambda: len(server.connections) == 0, "all to be closed")


def test_all_connections_together_have_a_limit() -> None:
    with served(connections=2, linger_seconds=0.2) as server:
        with Client(server) as one, Client(server, "127.0.0.2") as two:
            assert [one.post().answer().status, two.post().answer().status] == [200, 200]
            with Client(server, "127.0.0.3") as third:
                refusal(third, 429, "too_many_connections")
        assert server.refused["connections"] == 1


def test_samples_that_would_only_wait_are_refused_and_nothing_else_is(server: Served) -> None:
    with Client(server) as client:
        server.full = True
        try:
            for _ in range(3):
                busy = client.post(100_000).answer()
                assert (busy.status, busy.error["code"]) == (503, "busy")
                assert busy.headers["retry-after"] == "1"
            assert client.send(b"GET /none HTTP/1.1\r\n\r\n").answer().status == 404
            with Client(server) as other:
                other.post(3, "Connection: close\r\n")
                refusal(other, 503, "busy")
        finally:
            server.full = False
        assert client.post().answer().status == 200


def test_so_many_posts_are_answered_at_once() -> None:
    with served(ingest_requests=2) as server:
        held = [Client(server) for _ in range(2)]
        for client in held:
            # The prefix is what counts: a label for a sample is written as well.
            client.send(b"POST /samples/held HTTP/1.1\r\nContent-Length: 1\r\n\r\n")
        with Client(server) as third:
            # Nobody waits for bodies that have not arrived ...
            assert third.post().answer().status == 200
        assert server.connections.ingesting == 0
        for client in held:
            assert client.send(b"x").answer().status == 404
            client.socket.close()


def test_a_post_under_way_takes_a_place_until_it_is_answered() -> None:
    with served(ingest_requests=1) as server, Client(server) as first, Client(server) as second:
        server.connections.ingesting += 1  # as by a post that waits for its commit
        assert second.post().answer().status == 503
        server.connections.ingesting -= 1
        assert first.post().answer().status == 200
        assert server.connections.ingesting == 0
        assert second.post().answer().status == 200
