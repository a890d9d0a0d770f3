"""The kernels' sources: a compiler for the board takes them, and they say what Python says."""

from __future__ import annotations

import re
import shutil
import subprocess
from fnmatch import fnmatch
from pathlib import Path

import pytest

import engines.cuda_driver
from engines import cuda_conv_kernels, cuda_kernels, cuda_launch
from engines.cuda_driver import OPTIONS, kernel_signatures, kernel_source
from engines.feature import ACTIVATIONS
from engines.int8 import CODE_MAX

ROOT = Path(__file__).parents[1]
KERNELS = Path(engines.cuda_driver.__file__).with_name("kernels")

needs_nvcc = pytest.mark.skipif(shutil.which("nvcc") is None, reason="there is no nvcc on PATH")


def compiled(folder: Path, target: str, *options: str) -> bytes:
    source, out = folder / "kernels.cu", folder / target
    source.write_text(kernel_source())
    command = [shutil.which("nvcc"), f"-{target}", "-arch=sm_87", "-o", out, *options, source]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert not done.stderr
    return out.read_bytes()


@needs_nvcc
def test_every_kernel_compiles_for_an_orin_without_a_warning(tmp_path):
    strict = "-Werror=all-warnings", "-Xptxas=-warn-spills,-warn-lmem-usage,-Werror"
    cubin = compiled(tmp_path, "cubin", *OPTIONS, *strict)
    assert len(kernel_signatures()) >= 18
    for name in kernel_signatures():
        assert f".text.{name}\0".encode() in cubin


@needs_nvcc
def test_no_product_is_fused_with_a_sum(tmp_path):
    """One rounding in place of two would give other codes than torch's operators do."""
    assert b"fma." not in compiled(tmp_path, "ptx", *OPTIONS)
    assert b"fma." in compiled(tmp_path, "ptx")


def test_every_kernel_is_launched_by_a_wrapper():
    sources = "".join(Path(m.__file__).read_text() for m in (cuda_kernels, cuda_conv_kernels))
    launched = set(re.findall(r'on\.(?:rows|elements|pixels|blocks)\(\s*"(\w+)"', sources))
    assert launched == {*kernel_signatures()}


def test_numbers_that_are_written_twice_agree():
    defined = {
        name: int(value)
        for name, value in re.findall(r"^#define (\w+) (\d+)", kernel_source(), re.MULTILINE)
    }
    assert defined["CODE_MAX"] == CODE_MAX
    assert defined["THREADS"] == cuda_launch.THREADS
    assert defined["CHANNEL_LANES"] == cuda_launch.CHANNEL_LANES
    assert defined["PIXEL_LANES"] == cuda_launch.PIXEL_LANES
    assert defined["MOST_ROWS"] == cuda_kernels.MOST_ROWS
    assert (defined["LANES"], defined["OUTPUTS"]) == (cuda_kernels._LANES, cuda_kernels._OUTPUTS)
    numbers = {"none": "NO_ACTIVATION", "relu": "RELU", "relu6": "RELU6"}
    wanted = {name: defined[word] for name, word in numbers.items()}
    assert wanted == cuda_conv_kernels.ACTIVATIONS
    assert set(wanted) < set(ACTIVATIONS)


def test_the_sources_are_part_of_the_package():
    listed = re.search(r"^engines = \[(.*)\]$", (ROOT / "pyproject.toml").read_text(), re.MULTILINE)
    assert listed is not None
    patterns = re.findall(r'"([^"]+)"', listed[1])
    for file in KERNELS.iterdir():
        assert any(fnmatch(f"kernels/{file.name}", pattern) for pattern in patterns), file
