"""A fake `tensorrt` module. Its classes, methods and enums are those of the emulated version.

Whatever is not in that version's dump is absent, a call that would not bind raises TypeError as
pybind11 does, and enum values are opaque but for `int()`. What the classes do is in classes.py, and
their answers are real (execution.py); how TensorRT fails is in `FakeTensorRT`, for tests to switch.
Breaches of its rules that the real one would answer with undefined behaviour are noted in
`violations`.
"""

from __future__ import annotations

import functools
import types
from collections.abc import Callable
from typing import Any

from tests.fake_tensorrt.api import binds, dump
from tests.fake_tensorrt.classes import CLASSES


class FakeTensorRT:
    """One emulated version, its faults and what was asked of it.

    Args:
        version: One of `api.VERSIONS`.
    """

    def __init__(self, version: str) -> None:
        self.version = version
        self.gpu = True
        self.parses = True
        self.builds = True
        self.opens = True
        self.has_context = True
        self.has_refitter = True
        self.runs = True
        self.refits = True
        self.drops_bias = False  # the known fault of 11.3.0
        self.refit_drops_bias = False
        self.unnamed: Callable[[str], bool] = lambda name: False
        self.narrow: Callable[[str], bool] = lambda name: False  # prototypes of another size
        self.fused: list[set[str]] = []  # names that are to be given together
        self.has_current_context: Callable[[], bool] = lambda: True
        self.built = 0
        self.opened = 0
        self.refitted = 0
        self.given: list[str] = []
        self.flags: set[str] = set()
        self.timings: list[bytes] = []
        self.timings_match = True
        self.timings_open = True
        self.live = 0
        self.live_max = 0
        self.violations: set[str] = set()
        self.module = _module(self)

    def rule(self, holds: bool, text: str) -> None:
        if not holds:
            self.violations.add(text)


def _enum(name: str, members: dict[str, int]) -> type:
    def said(self: Any) -> str:
        return f"<{name}.{self.name}: {int(self)}>"

    kind = type(name, (), {"__int__": lambda self: self.value, "__repr__": said})
    for key, value in members.items():
        member = kind()
        member.name, member.value = key, value
        setattr(kind, key, member)
    return kind


def _module(fake: FakeTensorRT) -> types.ModuleType:
    known = dump(fake.version)
    module = types.ModuleType("tensorrt")
    module.__version__ = known["__version__"]
    for name, members in known.items():
        if isinstance(members, dict) and "__members__" in members:
            setattr(module, name, _enum(name, members["__members__"]))
    for kind in CLASSES:
        setattr(module, kind.__name__, _emulated(kind, fake, module))
    severity = _enum("Severity", known["ILogger"]["Severity"]["__members__"])
    for name in known["ILogger"]["Severity"]["__members__"]:
        setattr(module.ILogger, name, getattr(severity, name))
    return module


def _emulated(kind: type, fake: FakeTensorRT, module: types.ModuleType) -> type:
    """The class as this version has it."""
    offered = dump(fake.version)[kind.__name__]
    body: dict[str, Any] = {"_fake": fake, "_trt": module}
    for name, value in vars(kind).items():
        if name == "__init__" or not name.startswith("_"):
            if name not in offered and name != "__init__":
                continue
            is_method = callable(value)
            assert is_method == (offered.get(name, []) not in ("prop", "val")), (kind, name)
            body[name] = _checked(kind.__name__, name, value, fake) if is_method else value
        elif name not in ("__dict__", "__weakref__"):
            body[name] = value
    return type(kind.__name__, (), body)


def _checked(owner: str, method: str, implementation: Any, fake: FakeTensorRT) -> Any:
    @functools.wraps(implementation)
    def call(self: Any, *args: Any, **kwargs: Any) -> Any:
        if not binds(fake.version, owner, method, args, kwargs):
            raise TypeError(
                f"{owner}.{method}(): incompatible function arguments in {fake.version}: "
                f"{args} {kwargs}"
            )
        if owner != "ILogger":
            fake.rule(fake.has_current_context(), f"{owner}.{method} without a current context")
        return implementation(self, *args, **kwargs)

    return call
