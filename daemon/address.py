"""Where the daemon of this folder listens, for the commands that ask a running one."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated

import typer

from daemon.config import ENVIRONMENT_PREFIX, ServerSettings, load_settings

UrlOption = Annotated[
    str | None,
    typer.Option(help="Of the daemon. Default: server.host and server.port of ./ffedge.toml."),
]
_CONFIG = Path("ffedge.toml")
_ANY_HOST = {"0.0.0.0": "127.0.0.1", "::": "::1", "": "127.0.0.1"}  # noqa: S104 - not bound to


def daemon_url(given: str | None, environment: Mapping[str, str] | None = None) -> str:
    """The address to ask.

    Args:
        given: By the user; None: as `ffedge serve` would listen, started here.
        environment: Where there is no `ffedge.toml`; None: the process's own.

    Raises:
        ConfigError: `ffedge.toml` cannot be used.
    """
    if given is not None:
        return given
    if _CONFIG.is_file():
        server = load_settings(_CONFIG).server
        host, port = server.host, str(server.port)
    else:
        told = os.environ if environment is None else environment
        default = ServerSettings()
        host = told.get(f"{ENVIRONMENT_PREFIX}SERVER__HOST", default.host)
        port = told.get(f"{ENVIRONMENT_PREFIX}SERVER__PORT", str(default.port))
    host = _ANY_HOST.get(host, host)
    return f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"
