"""What a service manager is told, over its datagram socket: sd_notify(3) without a library.

Outside systemd there is no socket, and nothing is sent. A message that cannot be sent is logged and
otherwise forgotten: the daemon works on, and a watchdog that goes unfed is the manager's business.
"""

from __future__ import annotations

import contextlib
import logging
import socket
import threading
from collections.abc import Iterator, MutableMapping

log = logging.getLogger(__name__)

_EXTENSION_SECONDS = 60
_EXTEND_EVERY_SECONDS = 20.0
_MICROSECONDS = 1_000_000


class Notifier:
    """The service manager's ear.

    Args:
        address: A socket's path, or `@name` in the abstract name space; None: nobody listens.
        watchdog_seconds: How long the manager waits for `alive` before it restarts us; None: for
            ever.
    """

    def __init__(self, address: str | None, watchdog_seconds: float | None = None) -> None:
        self.watchdog_seconds = watchdog_seconds
        self._address = address
        self._socket: socket.socket | None = None
        self._status = ""
        if address is not None:
            self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC)
            # A manager that does not read must not hold up the event loop.
            self._socket.setblocking(False)

    @classmethod
    def take(cls, environment: MutableMapping[str, str], pid: int) -> Notifier:
        """The notifier that the environment describes, whose variables are removed.

        A child must not inherit them: it would speak in our name.

        Args:
            environment: `os.environ`.
            pid: Ours; a watchdog that is meant for another process is not ours to feed.
        """
        address = environment.pop("NOTIFY_SOCKET", None)
        watchdog = environment.pop("WATCHDOG_USEC", "")
        meant_for = environment.pop("WATCHDOG_PID", str(pid))
        seconds = int(watchdog) / _MICROSECONDS if watchdog.isdigit() else 0.0
        ours = address is not None and meant_for == str(pid) and seconds > 0
        return cls(address, seconds if ours else None)

    def ready(self) -> None:
        """Requests are answered now."""
        self._send("READY=1")

    def stopping(self) -> None:
        """The daemon has begun to stop."""
        self._send("STOPPING=1\nSTATUS=stopping")

    def alive(self) -> None:
        """All is well, for another `watchdog_seconds`."""
        self._send("WATCHDOG=1")

    def status(self, text: str) -> None:
        """One line for `systemctl status`; sent when it differs from the last."""
        if text != self._status:
            self._status = text
            self._send(f"STATUS={text}")

    @contextlib.contextmanager
    def starting(self, text: str, *, limit_seconds: float = 1800.0) -> Iterator[None]:
        """Ask for more time to start while the block runs: building an engine takes minutes.

        Args:
            text: What takes so long.
            limit_seconds: No more is asked for after this long, so that a start that hangs ends.
        """
        self.status(text)
        if self._socket is None:
            yield
            return
        done = threading.Event()

        def extend() -> None:
            for _ in range(max(1, int(limit_seconds / _EXTEND_EVERY_SECONDS))):
                self._send(f"EXTEND_TIMEOUT_USEC={_EXTENSION_SECONDS * _MICROSECONDS}")
                if done.wait(_EXTEND_EVERY_SECONDS):
                    return

        thread = threading.Thread(target=extend, name="extend-start")
        thread.start()
        try:
            yield
        finally:
            done.set()
            thread.join()

    def close(self) -> None:
        """Give the socket back; nothing is sent after."""
        if self._socket is not None:
            self._socket.close()
            self._socket = None

    def _send(self, text: str) -> None:
        if self._socket is None or self._address is None:
            return
        # A leading @ stands for the zero byte of the abstract name space.
        address = "\0" + self._address[1:] if self._address.startswith("@") else self._address
        try:
            self._socket.sendto(text.encode(), address)
        except OSError as error:
            log.warning("service manager not told", extra={"what": text, "why": str(error)})
