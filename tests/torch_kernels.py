"""Which operations have a CUDA kernel: what torch's own table says, which every wheel carries.

(`torchgen`'s native_functions.yaml, of the torch that is installed; a torch without CUDA has it.)
"""

from __future__ import annotations

import functools
import re
from pathlib import Path

import torchgen

_TABLE = Path(torchgen.__file__).parent / "packaged/ATen/native/native_functions.yaml"
_ENTRY = re.compile(r"^- func: (?P<name>[\w.]+)\(.*(?P<rest>(?:\n(?!- func).*)*)", re.MULTILINE)
_BACKENDS = re.compile(r"^    ([\w, ]+):", re.MULTILINE)
_ON_CUDA = {
    "CUDA",
    "CompositeExplicitAutograd",
    "CompositeExplicitAutogradNonFunctional",
    "CompositeImplicitAutograd",
}
_DELEGATE = re.compile(r"^  structured_delegate: ([\w.]+)", re.MULTILINE)


@functools.cache
def _entries() -> dict[str, str]:
    return {entry["name"]: entry["rest"] for entry in _ENTRY.finditer(_TABLE.read_text())}


def has_cuda_kernel(operation: str) -> bool:
    """Whether an operation, `add.Tensor` say, runs on CUDA: by itself, or made of others that may.

    Raises:
        KeyError: The table has no such operation.
    """
    entry = _entries()[operation.removesuffix(".default")]
    if delegate := _DELEGATE.search(entry):
        return has_cuda_kernel(delegate[1])
    if "\n  dispatch:" not in entry or "\n  ufunc_inner_loop:" in entry:
        return True  # of others, each with a kernel of its own; or written once for CPU and CUDA
    backends = {name.strip() for found in _BACKENDS.findall(entry) for name in found.split(",")}
    return bool(backends & _ON_CUDA)
