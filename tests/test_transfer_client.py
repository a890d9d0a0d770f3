"""The transfer client against servers that are busy, away, or something else."""

import json
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest

from daemon.errors import TransferError
from daemon.transfer.client import Client


@contextmanager
def serving(
    *answers: tuple[int, dict[str, str], bytes] | None,
) -> Iterator[tuple[str, list[bytes]]]:
    """A server that gives these answers in order; None: it hangs up instead."""
    waiting, bodies = list(answers), []

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_POST(self):
            bodies.append(self.rfile.read(int(self.headers.get("Content-Length") or 0)))
            answer = waiting.pop(0)
            if answer is None:
                self.close_connection = True
                return
            status, headers, content = answer
            self.send_response(status)
            for name, value in (headers | {"Content-Length": str(len(content))}).items():
                self.send_header(name, value)
            self.end_headers()
            self.wfile.write(content)

        do_GET = do_POST  # noqa: N815 - the server's name

        def log_message(self, *_):
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        thread = threading.Thread(target=server.serve_forever, args=(0.01,))
        thread.start()
        try:
            yield f"http://127.0.0.1:{server.server_port}", bodies
        finally:
            server.shutdown()
            thread.join()


def said(status: int, body: object, **headers: str) -> tuple[int, dict[str, str], bytes]:
    named = {name.replace("_", "-"): value for name, value in headers.items()}
    return status, named, json.dumps(body).encode()


@contextmanager
def client(url: str, patience: float = 30.0) -> Iterator[tuple[Client, list[str]]]:
    reasons: list[str] = []
    made = Client(url, patience_seconds=patience, on_wait=reasons.append)
    try:
        yield made, reasons
    finally:
        made.close()


def test_a_busy_daemon_is_asked_again_after_as_long_as_it_says():
    busy = [
        said(429, {"error": "too fast", "code": "rate_limited"}, Retry_After="1"),
        said(503, {"error": "4096 samples wait", "code": "queue_full"}, Retry_After="0"),
        said(507, {"error": "the disk is full", "code": "disk_full"}, Retry_After="0"),
    ]
    with serving(*busy, said(201, {"accepted": 1})) as (url, bodies), client(url) as (c, reasons):
        began = time.monotonic()
        answer = c.post("/samples", b"body", {"Content-Type": "application/json"})
        assert time.monotonic() - began >= 1.0
        assert (answer.status, answer.body) == (201, {"accepted": 1})
        assert bodies == [b"body"] * 4
        assert reasons == ["too fast", "4096 samples wait", "the disk is full"]


def test_a_lost_connection_and_an_answer_that_is_none_are_tried_again():
    strange = (502, {}, b"<html>")
    with (
        serving(None, strange, said(201, {"accepted": 1})) as (url, bodies),
        client(url) as (c, why),
    ):
        assert c.post("/samples", b"body", {}).status == 201
        assert bodies == [b"body"] * 3
        assert "does not answer" in why[0]
        assert why[1] == "it answers 502"


def test_a_final_answer_is_not_tried_again():
    with (
        serving(said(422, {"error": "no", "code": "bad_shape"})) as (url, _),
        client(url) as (c, why),
    ):
        assert c.post("/samples", b"body", {}).status == 422
        assert why == []


def test_patience_ends_with_the_daemons_own_reason():
    full = said(503, {"error": "the disk is full", "code": "storage"})
    with serving(*[full] * 9) as (url, bodies), client(url, 0.6) as (c, _):
        with pytest.raises(TransferError, match=r"gave up after 1 s: the disk is full"):
            c.post("/samples", b"body", {})
        assert len(bodies) == 3  # at 0, 0.25 and 0.75 s


@pytest.mark.parametrize("url", ["foo", "127.0.0.1:8484", "ftp://here", "http://", "http://a:b"])
def test_what_is_no_address(url):
    with pytest.raises(
        TransferError, match=r"is no address: one looks like http://127\.0\.0\.1:8484"
    ):
        Client(url, patience_seconds=1, on_wait=print)


def test_no_daemon_is_said_at_once():
    with serving() as (url, _):
        pass  # and gone
    with client(url) as (c, reasons):
        with pytest.raises(
            TransferError, match=r"no daemon answers at .*start it with ffedge serve"
        ):
            c.model()
        assert reasons == []


@pytest.mark.parametrize(
    "answer",
    [
        (200, {}, b"<html>"),
        said(200, {"model": "mlp"}),
        said(200, []),
        said(404, {"input_shape": [1], "max_classes": 2, "classes": []}),
    ],
)
def test_something_else_that_answers(answer):
    with (
        serving(answer) as (url, _),
        client(url) as (c, _),
        pytest.raises(TransferError, match="no ffedge of this version: is --url right"),
    ):
        c.model()


@pytest.mark.parametrize("command", ["import", "export"])
def test_a_command_that_cannot_begin_says_so_in_one_line(tmp_path, command):
    path = tmp_path / "a.csv"
    path.write_text("1,2,a\n")
    line = [sys.executable, "-m", "daemon", command, str(path), "--url", "http://127.0.0.1:9"]
    done = subprocess.run(line, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout) == (2, "")
    (said_once,) = done.stderr.splitlines()
    assert said_once.startswith("ffedge: no daemon answers at http://127.0.0.1:9 (")
    assert path.read_text() == "1,2,a\n"
