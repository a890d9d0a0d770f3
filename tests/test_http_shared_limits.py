"""What the requests of all connections share, and who is told to come back when it is used up."""

from __future__ import annotations

import pytest

from tests.http_server import Client, served
from tests.running import wait_for

HEAD = "POST {} HTTP/1.1\r\nHost: x\r\nContent-Length: {}\r\n\r\n"


def head(size: int, target: str = "/samples") -> bytes:
    return HEAD.format(target, size).encode()


def test_one_read_may_hold_the_end_of_a_large_request_and_the_head_of_the_next() -> None:
    size = 60_000
    first, second = head(size) + bytes(size), head(1) + b"x"
    with served(header_bytes=1 << 10) as server, Client(server) as client:
        client.send(first[:10])
        wait_for(lambda: len(server.connections) == 1, "the connection")
        client.send(first[10:] + second[:10])
        assert client.answer().body == str(size).encode()
        assert client.send(second[10:]).answer().body == b"1"


def test_bodies_in_memory_have_a_bound_and_who_goes_beyond_it_is_told_to_come_back() -> None:
    with served(body_bytes=1_000_000) as server:
        shared = server.connections
        with Client(server) as first, Client(server) as second, Client(server) as third:
            first.send(head(900_000) + bytes(800_000))
            wait_for(lambda: shared.body_bytes == 800_000, "most of the body")
            second.send(head(400_000) + bytes(400_000))
            refused = second.answer()
            assert (refused.status, refused.error["code"]) == (503, "busy")
            assert refused.headers["retry-after"] == "1"
            assert shared.body_bytes == 800_000
            # Whom there is room for goes on, and a small body always.
            assert third.post(60_000).answer().body == b"60000"
            assert first.send(bytes(100_000)).answer().body == b"900000"
            wait_for(lambda: shared.body_bytes == 0, "the memory to be free")
        assert server.refused["busy"] == 1


@pytest.mark.parametrize("claim", ["Content-Length: 100000", "Transfer-Encoding: chunked"])
def test_a_body_is_refused_at_its_headers_where_there_is_no_room(claim: str) -> None:
    with served(body_bytes=500_000) as server:
        shared = server.connections
        with Client(server) as large, Client(server) as small, Client(server) as third:
            large.send(head(499_999) + bytes(499_998))
            wait_for(lambda: shared.body_bytes == 499_998, "the large body")
            small.send(head(60_000) + bytes(50_000))
            wait_for(lambda: shared.crowded, "the small one beside it")
            third.send(f"POST /other HTTP/1.1\r\nHost: x\r\n{claim}\r\n\r\n".encode())
            refused = third.answer()
            assert (refused.status, refused.error["code"]) == (503, "busy")
            assert refused.headers["retry-after"] == "1"
            with Client(server) as fourth:
                assert fourth.post(60_000).answer().body == b"60000"
        wait_for(lambda: shared.body_bytes == 0, "what the closed connections held")


@pytest.mark.parametrize("target", ["/%73amples", "http://x/samples", "/samples?a=b"])
def test_however_the_target_is_written_a_post_of_samples_is_one(target: str) -> None:
    with served() as server, Client(server) as client:
        server.full = True
        busy = client.send(head(1, target) + b"x").answer()
        assert (busy.status, busy.error["code"]) == (503, "busy")
        server.full = False
        assert client.send(head(1, target) + b"x").answer().body == b"1"


def test_each_of_the_posts_behind_one_another_counts_and_is_answered_in_its_turn() -> None:
    with served(ingest_requests=2) as server, Client(server) as client:
        posts = (head(1) + b"x") * 5
        client.send(b"GET /held HTTP/1.1\r\nHost: x\r\n\r\n" + posts)
        wait_for(lambda: server.refused["busy"] == 3, "those that are too many to be refused")
        assert server.connections.ingesting == 2
        with Client(server) as other:
            assert other.post().answer().status == 503
        server.hold.set()
        assert client.answer().body == b"held"
        assert [client.answer().status for _ in range(5)] == [200, 200, 503, 503, 503]
        assert client.post().answer().status == 200
        wait_for(lambda: server.connections.ingesting == 0, "their places to be free")
