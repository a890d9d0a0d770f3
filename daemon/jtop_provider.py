"""Readings from jtop's service (jetson-stats 4.3.x and 7.x); the one file that imports jtop.

jetson-stats is AGPL-3.0 and its 7.x releases force the `fork` start method on whoever imports them:
hence the reader is a program of its own. jtop counts in mW, kB and percent; here that becomes W,
bytes and ratios.
"""

from __future__ import annotations

import os
import stat
import time
from collections.abc import Callable
from typing import Any

from daemon.power_provider import Fields, ProviderError

_KB = 1024


class JtopProvider:
    """A connection to jtop's service.

    Args:
        interval_seconds: Asked of the service; its first client's wish wins.
        socket: Where the service listens.

    Raises:
        ProviderError: No service, no permission, another version, or no power sensor.
        OSError: The service is gone.
    """

    name = "jtop"
    paced = True

    def __init__(self, interval_seconds: float, socket: str) -> None:
        try:
            from jtop import JtopException, jtop, service
        except ImportError as error:
            raise ProviderError(f"jetson-stats is not installed here ({error})") from error
        # Asked before a client is made: making one runs nvcc and dpkg.
        try:
            is_socket = stat.S_ISSOCK(os.stat(socket).st_mode)
        except OSError as error:
            raise ProviderError(f"no jtop service at {socket} ({error.strerror})") from error
        if not is_socket:
            raise ProviderError(f"{socket} is not a socket: was it mounted before jtop ran?")
        service.JTOP_PIPE = socket  # clients have no other way to say where
        self._failures = JtopException
        self._wanted_seconds = interval_seconds
        self._last = 0.0
        self._stamp: object = None
        self._jtop = self._guarded(lambda: jtop(interval=interval_seconds))
        self._guarded(self._jtop.start)
        self.interval_seconds = max(interval_seconds, float(self._jtop.interval))
        if not self._guarded(lambda: self._jtop.power):
            self.close()
            raise ProviderError("the jtop service knows no power sensor on this machine")

    def read(self) -> Fields:
        """See `Provider.read`."""
        return self._guarded(self._read)  # type: ignore[no-any-return]

    def close(self) -> None:
        """See `Provider.close`."""
        try:
            self._jtop.close()
        except Exception:  # noqa: BLE001 - a broken connection may fail in any way
            return

    def _guarded(self, action: Callable[[], Any]) -> Any:  # noqa: ANN401 - jtop has no types
        """One call of jtop, its own error made ours; the text is for people, it varies."""
        try:
            return action()
        except self._failures as error:
            first = (str(error).splitlines() or [type(error).__name__])[0]
            raise ProviderError(f"jtop: {first}") from error

    def _read(self) -> Fields:
        """Wait for a sample that is new, and not sooner than we want one.

        Another client may have made the service faster. With its sampler hung, it goes on handing
        out the last sample.
        """
        while True:
            if not self._jtop.ok():
                raise ProviderError("jtop gave no sample in three of its intervals")
            now, stamp = time.monotonic(), self._jtop.stats["time"]
            if stamp == self._stamp:
                if now - self._last > 3 * self.interval_seconds:
                    raise ProviderError("jtop's samples stand still")
            elif now - self._last >= 0.9 * self._wanted_seconds:
                self._stamp, self._last = stamp, now
                return _fields(self._jtop)


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
            if sensor.get("online", True) and sensor["temp"] > -256  # "offline"
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
