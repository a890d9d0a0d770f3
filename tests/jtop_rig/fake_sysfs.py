"""Write a fake Jetson Orin Nano sysfs tree: INA3221 power rails, thermal zones, GPU devfreq.

The setters change one value of a running tree; a jtop server that reads it
reports the new value at its next sample.
"""

import pathlib

# channel -> (label, mV, mA); board power (VDD_IN) = 5000 mV * 1400 mA = 7000 mW
RAILS = {1: ("VDD_IN", 5000, 1400), 2: ("VDD_CPU_GPU_CV", 5000, 480), 3: ("VDD_SOC", 5000, 420)}
ZONES = (
    ("cpu-thermal", 47218),
    ("gpu-thermal", 46500),
    ("soc0-thermal", 45100),
    ("tj-thermal", 47300),
)
DEVFREQ = {
    "cur_freq": 612000000,
    "max_freq": 1020000000,
    "min_freq": 306000000,
    "governor": "nvhost_podgov",
}

HWMON = "bus/i2c/devices/1-0040/hwmon/hwmon1"
THERMAL = "devices/virtual/thermal"
GPU = "devices/platform/17000000.gpu"


def _write(path, value):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(f"{value}\n")


def build(root, rails=RAILS):
    """Create the tree under `root` and return it as a Path. rails={} = a board without sensors."""
    root = pathlib.Path(root)
    if rails:
        _write(root / "bus/i2c/devices/1-0040/name", "ina3221")
        _write(root / HWMON / "in7_label", "sum of shunt voltages")
    for n, (label, mv, ma) in rails.items():
        for key, value in (
            (f"in{n}_label", label),
            (f"in{n}_input", mv),
            (f"curr{n}_input", ma),
            (f"curr{n}_max", 4672),
            (f"curr{n}_crit", 5816),
        ):
            _write(root / HWMON / key, value)
    (root / "bus/i2c/devices").mkdir(parents=True, exist_ok=True)
    for i, (name, milli_c) in enumerate(ZONES):
        _write(root / THERMAL / f"thermal_zone{i}/type", name)
        _write(root / THERMAL / f"thermal_zone{i}/temp", milli_c)
    dev = root / GPU
    (dev / "of_node").mkdir(parents=True)
    (dev / "of_node/name").write_text("gpu\0")  # device-tree strings end in NUL, not newline
    for key, value in (("load", 350), ("railgate_enable", 1), ("enable_3d_scaling", 1)):
        _write(dev / key, value)
    freq = dev / "devfreq/17000000.gpu"
    for key, value in DEVFREQ.items():
        _write(freq / key, value)
    (freq / "device").symlink_to(dev)
    (root / "class/devfreq").mkdir(parents=True)
    (root / "class/devfreq/17000000.gpu").symlink_to(freq)
    return root


def set_rail(root, channel, mv=None, ma=None):
    """Change voltage (mV) and/or current (mA) of one INA3221 channel."""
    if mv is not None:
        _write(pathlib.Path(root) / HWMON / f"in{channel}_input", mv)
    if ma is not None:
        _write(pathlib.Path(root) / HWMON / f"curr{channel}_input", ma)


def set_temperature(root, zone, celsius):
    _write(pathlib.Path(root) / THERMAL / f"thermal_zone{zone}/temp", int(celsius * 1000))


def set_gpu_load(root, percent):
    _write(pathlib.Path(root) / GPU / "load", int(percent * 10))
