"""The fake CUDA driver library, in two forms: to link pycuda with, and to run it on.

It is `fake_cuda.c`, with a stub that answers CUDA_ERROR_NO_DEVICE for every other driver function
that pycuda imports.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
from pathlib import Path

DRIVER_NAME = "libcuda.so.1"
SOURCE = Path(__file__).with_name("fake_cuda.c")


def build_link_library(folder: Path) -> None:
    """`libcuda.so` in `folder`: enough for pycuda's build."""
    _compile("int cuInit(unsigned flags) { return 100; }\n", folder / "libcuda.so")


def build_run_library(site: Path, folder: Path) -> None:
    """`libcuda.so.1` in `folder`, for the pycuda installed in `site`."""
    (extension,) = (site / "pycuda").glob("_driver*.so")
    listing = [shutil.which("nm") or "nm", "-D", "--undefined-only", str(extension)]
    symbols = subprocess.run(listing, check=True, capture_output=True, text=True)
    needed = set(re.findall(r"\b(cu[A-Z]\w*)", symbols.stdout))
    source = SOURCE.read_text()
    implemented = set(re.findall(r"^CUresult (\w+)\(", source, re.MULTILINE))
    stubs = (f"int {name}(void) {{ return 100; }}\n" for name in sorted(needed - implemented))
    _compile(source + "".join(stubs), folder / DRIVER_NAME)


def _compile(source: str, target: Path) -> None:
    compiler = os.environ.get("CC", "cc")
    flags = ["-O1", "-shared", "-fPIC", f"-Wl,-soname,{DRIVER_NAME}", "-x", "c", "-"]
    subprocess.run([compiler, *flags, "-o", target, "-ldl"], input=source, text=True, check=True)
