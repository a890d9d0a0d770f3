"""NVIDIA's real Python bindings of TensorRT, without TensorRT: installed once, kept under `var/`.

The wheels are proprietary: for development only, never shipped. They ask for nine functions of
TensorRT's libraries, which stub.c gives them; every factory returns NULL, as without a usable GPU.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import NamedTuple

import pytest

PACKAGES = {
    "10.3": "tensorrt-cu12-bindings==10.3.0",
    "10.16": "tensorrt-cu13-bindings==10.16.1.11",
    "11.4": "tensorrt-cu12-bindings==11.4.0.106",
}
LIBRARIES = ("libnvinfer", "libnvonnxparser", "libnvinfer_plugin")
HERE = Path(__file__).parent
CACHE = HERE.parents[1] / "var" / "tensorrt"


class Bindings(NamedTuple):
    """Where they lie.

    Args:
        site: Folder to import tensorrt from.
        libraries: The stubs.
    """

    site: Path
    libraries: Path

    def run(self, *arguments: str, stubs: bool = True) -> subprocess.CompletedProcess[str]:
        """Python in a process that can import them, with or without the stubs."""
        root = str(HERE.parents[1])
        environment = dict(os.environ, PYTHONPATH=os.pathsep.join([str(self.site), root]))
        if stubs:
            environment["LD_LIBRARY_PATH"] = str(self.libraries)
        return subprocess.run(
            [sys.executable, *arguments],
            env=environment,
            capture_output=True,
            text=True,
            check=False,
            timeout=120,
        )


def open_bindings(version: str) -> Bindings:
    """The bindings of one version; skips where they cannot be had."""
    compiler = shutil.which(os.environ.get("CC", "cc"))
    if compiler is None:
        pytest.skip("the stub libraries cannot be built: there is no C compiler here")
    kept = CACHE / f"{PACKAGES[version].partition('==')[2]}-{sys.implementation.cache_tag}"
    if not kept.exists():
        CACHE.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=CACHE) as work:
            made = Path(work) / "made"
            _install(PACKAGES[version], made / "site")
            _compile(compiler, made / "lib", version.partition(".")[0])
            made.rename(kept)
    return Bindings(kept / "site", kept / "lib")


def _install(package: str, site: Path) -> None:
    pip = [sys.executable, "-m", "pip", "install", "--quiet", "--disable-pip-version-check"]
    done = subprocess.run(
        [*pip, "--no-deps", "--target", str(site), package],
        capture_output=True,
        text=True,
        check=False,
    )
    if done.returncode:
        last = (done.stderr.strip() or "it said nothing").splitlines()[-1]
        pytest.skip(f"pip cannot install {package}: {last}")
    (site / "tensorrt_bindings").rename(site / "tensorrt")  # what the package `tensorrt` aliases


def _compile(compiler: str, folder: Path, major: str) -> None:
    folder.mkdir(parents=True)
    for library in LIBRARIES:
        name = f"{library}.so.{major}"
        command = [compiler, "-shared", "-fPIC", f"-Wl,-soname,{name}", "-o", str(folder / name)]
        subprocess.run([*command, str(HERE / "stub.c")], check=True)
