"""The real pycuda, built once from its source distribution and kept under `var/`.

PyPI has no wheel of it. The build takes a minute or two, so a test that uses the fixture has a
timeout of its own: `pytestmark = pytest.mark.timeout(BUILD_TIMEOUT_SECONDS)`.
"""

from __future__ import annotations

import contextlib
import ctypes
import fcntl
import hashlib
import os
import re
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import NamedTuple

import pytest

from tests.cuda_rig.fake_driver import (
    DRIVER_NAME,
    SOURCE,
    build_link_library,
    build_run_library,
)

VERSION = "2026.1"
BUILD_TIMEOUT_SECONDS = 900
CACHE = Path(__file__).parents[2] / "var" / "pycuda"


class PycudaRig(NamedTuple):
    """Where things lie.

    Args:
        site: Folder to import pycuda from.
        driver: The fake `libcuda.so.1`.
    """

    site: Path
    driver: Path

    def environment(self) -> dict[str, str]:
        """Variables for a child process that imports pycuda by name."""
        return dict(
            os.environ,
            PYTHONPATH=_joined(os.environ.get("PYTHONPATH"), self.site),
            LD_LIBRARY_PATH=_joined(self.driver.parent, os.environ.get("LD_LIBRARY_PATH")),
        )

    def enter(self) -> None:
        """Make `import pycuda.driver` work in this process; it stays so."""
        maps = Path("/proc/self/maps")
        loaded = set(re.findall(r"\S*/libcuda\.so\S*", maps.read_text())) if maps.exists() else ()
        if any(Path(path) != self.driver for path in loaded):
            pytest.skip("this process has loaded a real CUDA driver: the fake one would not be met")
        # By its soname it is the library that pycuda's extension asks for.
        ctypes.CDLL(str(self.driver), mode=ctypes.RTLD_GLOBAL)
        if str(self.site) not in sys.path:
            sys.path.append(str(self.site))  # last: what it brings along hides nothing


def _joined(*parts: object) -> str:
    return os.pathsep.join(str(part) for part in parts if part)


@pytest.fixture(scope="session")
def pycuda_rig() -> PycudaRig:
    """pycuda on the fake driver; skips where it cannot be built."""
    toolkit = _toolkit()
    for tool in ("cc", "c++", "nm", "tar"):
        if shutil.which(tool) is None:
            pytest.skip(f"pycuda cannot be built: there is no {tool} here")
    tag = f"{VERSION}-{sys.implementation.cache_tag}-{toolkit.name}"
    kept = CACHE / re.sub(r"[^\w.-]", "_", tag)
    CACHE.mkdir(parents=True, exist_ok=True)
    with (CACHE / "lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)  # one worker builds, and the others wait for it
        if not kept.exists():
            with tempfile.TemporaryDirectory(dir=CACHE) as work:
                _build(Path(work), toolkit).rename(kept)
    return PycudaRig(kept / "site", _driver(kept))


def _driver(kept: Path) -> Path:
    """The fake driver as its source now has it; a loaded one is never written over."""
    folder = kept / f"driver-{hashlib.sha256(SOURCE.read_bytes()).hexdigest()[:12]}"
    if not folder.exists():
        with tempfile.TemporaryDirectory(dir=kept) as work:
            built = Path(work) / "driver"
            built.mkdir()
            build_run_library(kept / "site", built)
            with contextlib.suppress(OSError):
                built.rename(folder)
    return folder / DRIVER_NAME


def _toolkit() -> Path:
    """Folder of the CUDA toolkit."""
    nvcc = shutil.which("nvcc")
    if nvcc is None:
        pytest.skip("pycuda cannot be built: there is no nvcc on PATH")
    # What is on PATH may be a script that calls the real one; it knows where that is.
    told = subprocess.run([nvcc, "--dryrun", "x.cu"], capture_output=True, text=True, check=False)
    top = re.search(r"^#\$ TOP=(.*)$", told.stderr, re.MULTILINE)
    folder = Path(top[1] if top else Path(nvcc).parent / "..").resolve()
    if not list(folder.glob("include/cuda.h")):
        pytest.skip(f"pycuda cannot be built: there is no cuda.h in {folder / 'include'}")
    return folder


def _build(work: Path, toolkit: Path) -> Path:
    """A folder with `site` in it, where pycuda and what it imports are installed."""
    pip = (sys.executable, "-m", "pip", "--disable-pip-version-check", "--quiet")
    wanted = f"pycuda=={VERSION}"
    # Not all from source: what the build needs, numpy, would be built from source too.
    _run(work, *pip, "download", "--no-deps", "--no-binary", "pycuda", "--dest", "sdist", wanted)
    (archive,) = (work / "sdist").glob("*.tar.gz")
    _run(work, "tar", "-xf", str(archive))
    source = work / f"pycuda-{VERSION}"
    build_link_library(work)
    (source / "siteconf.py").write_text(
        f"CUDA_ROOT = {str(toolkit)!r}\n"
        "CUDA_ENABLE_CURAND = False\n"
        f"CUDADRV_LIB_DIR = [{str(work)!r}]\n"
        "CUDADRV_LIBNAME = ['cuda']\n"
        "USE_SHIPPED_BOOST = True\n"
        # Of code that hands calls on: compiled in half the time.
        "CXXFLAGS = ['-O0', '-g0']\n"
    )
    _run(work, *pip, "wheel", "--no-deps", "--wheel-dir", "wheels", str(source))
    (wheel,) = (work / "wheels").glob("pycuda-*.whl")
    _run(work, *pip, "install", "--target", "built/site", str(wheel))
    return work / "built"


def _run(folder: Path, *command: str) -> None:
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True, check=False)
    if done.returncode:
        last = (done.stderr.strip() or done.stdout.strip() or "it said nothing").splitlines()[-1]
        pytest.skip(f"pycuda cannot be built: {' '.join(command[1:5])}: {last}")
