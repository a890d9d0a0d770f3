"""One request to a running daemon, for the commands that look at it or tell it what to do."""

from __future__ import annotations

import http.client
import json
import urllib.error
import urllib.request
from typing import Any

from daemon.errors import FfedgeError

# A version that is opened on a busy board takes its time.
_TIMEOUT_SECONDS = 60.0
# No proxy: the daemon is on this machine, or near it.
_opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))


class AskingError(FfedgeError):
    """No daemon answers there, or something else does, or it refuses."""


def ask(
    address: str, path: str, body: dict[str, Any] | None = None, *, also: int | None = None
) -> bytes:
    """What a daemon answers.

    Args:
        address: Of the daemon, `http://host:port`.
        path: Of the request.
        body: Of a POST, as JSON; None: a GET.
        also: A status beside 2xx whose body is an answer in the usual form.

    Raises:
        AskingError: No daemon answers there, or it refuses, with its reason; or the body has a
            number that JSON has not.
    """
    address = address.rstrip("/")
    if not address.startswith(("http://", "https://")):
        raise AskingError(f"{address} is no address: it looks like http://127.0.0.1:8484")
    headers = {} if body is None else {"Content-Type": "application/json"}
    try:
        data = None if body is None else json.dumps(body, allow_nan=False).encode()
    except ValueError as error:
        raise AskingError("an option is nan or inf: give a number, such as 60") from error
    request = urllib.request.Request(address + path, data, headers)  # noqa: S310 - http, as checked
    try:
        with _opener.open(request, timeout=_TIMEOUT_SECONDS) as answer:
            return bytes(answer.read())
    except urllib.error.HTTPError as error:
        content = error.read()
        if error.code == also:
            return content
        raise AskingError(_reason(content, f"{address}{path} answers {error.code}")) from error
    except (OSError, ValueError, http.client.HTTPException) as error:
        why = getattr(error, "reason", error)
        raise AskingError(
            f"no daemon answers at {address} ({why}): start it with ffedge serve, or name another "
            "by --url"
        ) from error


def ask_object(address: str, path: str, body: dict[str, Any] | None = None) -> dict[str, Any]:
    """As `ask`, for an answer that is a JSON object."""
    try:
        found = json.loads(ask(address, path, body))
    except ValueError as error:
        raise not_ours(address) from error
    if not isinstance(found, dict):
        raise not_ours(address)
    return found


def not_ours(address: str) -> AskingError:
    """The error for an answer that no ffedge gives."""
    return AskingError(f"what answers at {address} is no ffedge of this version: is --url right?")


def _reason(content: bytes, otherwise: str) -> str:
    """What a daemon says for itself; a server that is none says nothing of use."""
    try:
        return str(json.loads(content)["error"])
    except (ValueError, KeyError, TypeError):
        return f"{otherwise}: is --url right?"
