"""One connection to a running daemon, which is asked again while it is busy or away.

The standard library's client: it is there, loads in milliseconds, and one request at a time is all
that is needed. Asking again is safe since every sample that is sent carries an id.
"""

from __future__ import annotations

import http.client
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any
from urllib.parse import urlencode, urlsplit

import msgspec

from daemon.errors import TransferError

_TIMEOUT_SECONDS = 60.0
_LONGEST_WAIT_SECONDS = 30.0
_FIRST_WAIT_SECONDS = 0.25
# It takes the request, only not now.
_BUSY_STATUSES = (429, 503, 507)


@dataclass(frozen=True)
class Model:
    """What a daemon's model takes.

    Args:
        input_shape: Of one sample.
        max_classes: Places for classes.
        classes: Names of those taken.
    """

    input_shape: tuple[int, ...]
    max_classes: int
    classes: tuple[str, ...]


@dataclass(frozen=True)
class Answer:
    """An answer that is final.

    Args:
        status: Below 500, and not 429.
        body: The JSON object.
    """

    status: int
    body: dict[str, Any]


class Client:
    """A running daemon, over HTTP; used from one thread.

    Args:
        url: Its address, `http://host:port`.
        patience_seconds: How long it may be busy or away before we give up.
        on_wait: Told why we wait, each time.

    Raises:
        TransferError: That is no address.
    """

    def __init__(
        self, url: str, *, patience_seconds: float, on_wait: Callable[[str], None]
    ) -> None:
        self.url = url.rstrip("/")
        self._patience_seconds, self._on_wait = patience_seconds, on_wait
        try:
            parts = urlsplit(self.url)
            kinds: dict[str, type[http.client.HTTPConnection]] = {
                "http": http.client.HTTPConnection,
                "https": http.client.HTTPSConnection,
            }
            self._prefix = parts.path
            if not parts.hostname:
                raise ValueError
            self._connection = kinds[parts.scheme](
                parts.hostname, parts.port, timeout=_TIMEOUT_SECONDS
            )
        except (KeyError, ValueError):
            raise TransferError(
                f"{url} is no address: one looks like http://127.0.0.1:8484"
            ) from None

    def close(self) -> None:
        """Close the connection."""
        self._connection.close()

    def model(self) -> Model:
        """What the model takes; asked once, so that a wrong address is known at once.

        Raises:
            TransferError: No daemon answers, or something else does.
        """
        try:
            status, _, content = self._ask("GET", "/models", b"", {})
        except (OSError, http.client.HTTPException) as error:
            raise TransferError(
                f"no daemon answers at {self.url} ({_why(error)}): start it with ffedge serve, or "
                "name another by --url"
            ) from error
        try:
            body = msgspec.json.decode(content)
            if status != 200:
                raise ValueError
            return Model(tuple(body["input_shape"]), body["max_classes"], tuple(body["classes"]))
        except (ValueError, KeyError, TypeError) as error:
            raise TransferError(
                f"what answers at {self.url} is no ffedge of this version: is --url right?"
            ) from error

    def get(self, path: str, **query: str | int) -> Answer:
        """The answer to a GET, waited for.

        Raises:
            TransferError: As in `post`.
        """
        return self._insist("GET", f"{path}?{urlencode(query)}", b"", {})

    def post(self, path: str, body: bytes, headers: Mapping[str, str]) -> Answer:
        """The answer to a POST that may be sent twice.

        Raises:
            TransferError: The daemon was busy or away for too long.
        """
        return self._insist("POST", path, body, headers)

    def _insist(self, method: str, path: str, body: bytes, headers: Mapping[str, str]) -> Answer:
        began, pause = time.monotonic(), _FIRST_WAIT_SECONDS
        while True:
            asked: float | None = None
            try:
                status, fields, content = self._ask(method, path, body, headers)
            except (OSError, http.client.HTTPException) as error:
                self._connection.close()
                why = f"it does not answer ({_why(error)})"
            else:
                answer = _decode(content)
                if answer and status not in _BUSY_STATUSES:
                    return Answer(status, answer)
                why = str(answer.get("error", f"it answers {status}"))
                asked = _seconds(fields.get("retry-after"))
            if time.monotonic() - began > self._patience_seconds:
                raise TransferError(f"gave up after {self._patience_seconds:.0f} s: {why}")
            self._on_wait(why)
            time.sleep(pause if asked is None else min(asked, _LONGEST_WAIT_SECONDS))
            pause = min(2 * pause, _LONGEST_WAIT_SECONDS)

    def _ask(
        self, method: str, path: str, body: bytes, headers: Mapping[str, str]
    ) -> tuple[int, dict[str, str], bytes]:
        self._connection.request(method, self._prefix + path, body or None, dict(headers))
        response = self._connection.getresponse()
        content = response.read()
        return response.status, {k.lower(): v for k, v in response.getheaders()}, content


def _decode(content: bytes) -> dict[str, Any]:
    try:
        body = msgspec.json.decode(content)
    except (msgspec.DecodeError, UnicodeDecodeError):
        return {}
    return body if isinstance(body, dict) else {}


def _seconds(text: str | None) -> float | None:
    return float(text) if text and text.isdecimal() else None


def _why(error: Exception) -> str:
    return getattr(error, "strerror", None) or str(error) or type(error).__name__
