"""Our kernels compiled for this machine's CPU, where the fake driver finds them.

For every kernel K the library has a function `hostk_K(packed arguments, {grid, block})`, written
here from K's own list of parameters; `host_shim.h` runs the threads of a block one after another.
"""

from __future__ import annotations

import os
import re
import subprocess
from pathlib import Path

from engines.cuda_driver import kernel_source

_SHIM = Path(__file__).with_name("host_shim.h")
_ENTRY = """
struct {name}_arguments {{ {fields} }};
extern "C" void hostk_{name}(void *packed, unsigned *shape) {{
    {name}_arguments p;
    std::memcpy(&p, packed, offsetof({name}_arguments, {last}) + sizeof p.{last});
    ffshim::launch(dim3{{shape[0], shape[1], shape[2]}}, dim3{{shape[3], shape[4], shape[5]}},
                   [=] {{ {name}({values}); }});
}}
"""


def build_host_kernels(folder: Path) -> Path:
    """The library."""
    library = folder / "libkernels_host.so"
    # Nothing fused, nothing reordered: the device's bits.
    flags = ["-O1", "-std=c++17", "-ffp-contract=off", "-Wno-unknown-pragmas", "-shared", "-fPIC"]
    subprocess.run(
        [os.environ.get("CXX", "c++"), *flags, "-x", "c++", "-", "-o", str(library)],
        input=host_source(),
        text=True,
        check=True,
    )
    return library


def host_source() -> str:
    source = kernel_source()
    kernels = re.findall(r'extern "C" __global__ void (\w+)\(([^)]*)\)', source)
    entries = (_entry(name, arguments.split(",")) for name, arguments in kernels)
    return "\n".join([f'#include "{_SHIM}"', "#include <cstring>", source, *entries])


def _entry(name: str, arguments: list[str]) -> str:
    names = [re.findall(r"\w+", argument)[-1] for argument in arguments]
    fields = " ".join(f"{' '.join(argument.split())};" for argument in arguments)
    values = ", ".join(f"p.{name}" for name in names)
    return _ENTRY.format(name=name, fields=fields, last=names[-1], values=values)
