"""Readings from jtop's service (jetson-stats 4.3.x and 7.x); the one file that imports jtop.

jetson-stats is AGPL-3.0 and its 7.x releases force the `fork` start method on whoever imports them:
hence the reader is a program of its own. jtop counts in mW, kB and percent; here that becomes W,
bytes and ratios.

Each connection has a thread of its own. A hung service answers no call, and no call has a limit;
and `multiprocessing`, which jtop speaks, keeps one connection a thread to each address and goes on
using it when it is dead.
"""

from __future__ import annotations

import os
import queue
import stat
import threading
import time
from contextlib import suppress
from typing import Any, ClassVar

from daemon.power_provider import Fields, ProviderError

_KB = 1024
_LATE_INTERVALS = 3.5  # jtop itself waits for three


class JtopProvider:
    """A connection to jtop's service.

    Args:
        interval_seconds: Asked of the service; its first client's wish wins.
        socket: Where the service listens.

    Raises:
        ProviderError: No service, no permission, another version, or no power sensor.
    """

    name = "jtop"
    paced = True
    # One at a time, or a service that hangs would collect them. Its end, or its return, ends it.
    _thread: ClassVar[threading.Thread | None] = None

    def __init__(self, interval_seconds: float, socket: str) -> None:
        try:
            from jtop import jtop, service
        except ImportError as error:
            raise ProviderError(f"jetson-stats is not installed here ({error})") from error
        # Asked before a client is made: making one runs nvcc and dpkg.
        try:
            is_socket = stat.S_ISSOCK(os.stat(socket).st_mode)
        except OSError as error:
            raise ProviderError(f"no jtop service at {socket} ({error.strerror})") from error
        if not is_socket:
            raise ProviderError(f"{socket} is not a socket: was it mounted before jtop ran?")
        if (before := JtopProvider._thread) is not None:
            before.join(0.2)  # it may be about to end
            if before.is_alive():
                raise ProviderError("the connection before this one still hangs")
        service.JTOP_PIPE = socket  # clients have no other way to say where
        self.interval_seconds = self._wanted_seconds = interval_seconds
        self._last_seconds = 0.0
        self._stamp: object = None
        self._closed = threading.Event()
        self._samples: queue.Queue[Fields | Exception] = queue.Queue()
        JtopProvider._thread = threading.Thread(target=self._run, args=(jtop,), daemon=True)
        JtopProvider._thread.start()
        try:
            self._take(_LATE_INTERVALS * interval_seconds + 1)
        except BaseException:  # the reader's deadline, too: else the connection would stay
            self.close()
            raise

    def read(self) -> Fields:
        """See `Provider.read`."""
        return self._take(_LATE_INTERVALS * self.interval_seconds)

    def close(self) -> None:
        """See `Provider.close`."""
        self._closed.set()

    def _take(self, seconds: float) -> Fields:
        """The newest sample, waited for."""
        try:
            sample = self._samples.get(timeout=seconds)
            while not self._samples.empty():
                sample = self._samples.get()
        except queue.Empty:
            self.close()
            raise ProviderError(f"jtop gave nothing in {seconds:g} s") from None
        if isinstance(sample, Exception):
            first = (str(sample).splitlines() or [""])[0]
            # The text is for people: it differs between versions.
            raise ProviderError(f"jtop: {first or type(sample).__name__}") from sample
        return sample

    def _run(self, jtop: Any) -> None:  # noqa: ANN401 - jtop has no types
        try:
            jetson = jtop(interval=self._wanted_seconds)
            try:
                jetson.start()
                self.interval_seconds = max(self._wanted_seconds, float(jetson.interval))
                if not jetson.power:
                    raise ProviderError("it knows no power sensor on this machine")
                while not self._closed.is_set():
                    self._samples.put(self._next(jetson))
            finally:
                with suppress(Exception):  # a broken connection may fail in any way
                    jetson.close()
        except Exception as error:  # noqa: BLE001 - whatever listens there may answer anything
            self._samples.put(error)

    def _next(self, jetson: Any) -> Fields:  # noqa: ANN401 - jtop has no types
        """Wait for a sample that is new, and not sooner than we want one.

        Another client may have made the service faster. With its sampler hung, it goes on handing
        out the last sample.
        """
        while True:
            if not jetson.ok():
                raise ProviderError("no sample in three of its intervals")
            now, stamp = time.monotonic(), jetson.stats["time"]
            if stamp == self._stamp:
                if now - self._last_seconds > 3 * self.interval_seconds:
                    raise ProviderError("its samples stand still")
            elif now - self._last_seconds >= 0.9 * self._wanted_seconds:
                self._stamp, self._last_seconds = stamp, now
                return _fields(jetson)


def _fields(jetson: Any) -> Fields:  # noqa: ANN401 - jtop has no types
    power, memory = jetson.power, jetson.memory.get("RAM", {})
    fields: Fields = {
        "rails": {
            name: rail["power"] / 1000
            for name, rail in power.get("rail", {}).items()
            if rail.get("online", True)
        },
        "celsius": {
            name: float(sensor["temp"])
            for name, sensor in jetson.temperature.items()
            if sensor.get("online", True)
        },
    }
    total = power.get("tot", {})
    if total.get("online", True) and "power" in total:
        fields["watts"] = total["power"] / 1000
    if memory:
        fields["ram_used_bytes"] = memory["used"] * _KB
        fields["ram_total_bytes"] = memory["tot"] * _KB
        if memory.get("shared"):  # 0 also where the kernel does not tell
            fields["ram_gpu_bytes"] = memory["shared"] * _KB
    loads = [gpu["status"]["load"] for gpu in jetson.gpu.values() if "load" in gpu["status"]]
    if loads:
        fields["gpu_ratio"] = max(loads) / 100
    if jetson.nvpmodel is not None:
        fields["nvpmodel"] = str(jetson.nvpmodel)
    return fields
