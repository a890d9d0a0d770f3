"""Run the real jtop server (jetson-stats 4.3.x or 7.2.x) on a fake sysfs tree.

    python server.py TREE SOCKET READY_FILE

Non-root, private socket, nothing written outside the socket's folder. READY_FILE
appears once the server accepts clients. It calls jetson-stats (AGPL-3.0) but holds
none of its code: a test-only, separate process. It forks a manager: start it in a
session of its own and kill that group.
"""

import grp
import os
import pathlib
import sys
from unittest import mock


def serve(tree, sock, ready):
    import jtop.core.config as config
    import jtop.core.gpu as gpu
    import jtop.core.power as power
    import jtop.core.temperature as temperature
    import jtop.service as service

    tree = str(pathlib.Path(tree).resolve())
    service.JTOP_PIPE = sock
    service.JTOP_USER = grp.getgrgid(os.getgid()).gr_name  # instead of the group "jtop"
    config.get_config_service = lambda *_: os.path.dirname(sock)
    service.get_hardware = dict  # machines without /sys/devices/virtual/dmi/id
    with mock.patch("os.getuid", return_value=0):  # the constructor insists on root
        srv = service.JtopServer()
    # Point the readers at the fake tree before start(), which forks.
    monitors = power.find_all_i2c_power_monitor(tree + "/bus/i2c/devices")
    srv.power._power_sensor = dict(sorted(monitors.items()))
    zones = temperature.get_virtual_thermal_temperature(tree + "/devices/virtual/thermal")
    srv.temperature._temperature = zones
    srv.gpu._gpu_list = gpu.find_igpu(tree + "/class/devfreq")
    srv.gpu._use_nvml = False  # 7.x only; harmless on 4.3.x
    srv.gpu._sysfs_retry = False
    srv.board = {
        "hardware": {
            "Model": "NVIDIA Jetson Orin Nano Developer Kit Super (fake)",
            "Module": "NVIDIA Jetson Orin Nano (8GB ram)",
            "SoC": "tegra234",
            "CUDA Arch BIN": "8.7",
            "L4T": "36.4.3",
            "Jetpack": "6.2",
        },
        "cpu": {},
    }
    srv.start()
    pathlib.Path(ready).write_text("1")
    srv.join()


if __name__ == "__main__":
    serve(*sys.argv[1:4])
