"""Print the enum values and call signatures of the installed tensorrt module's classes, as JSON.

    python introspect.py CLASS...

{class: {method: [signature, one an overload]}} for methods, "prop" for a property, {"__members__":
{name: int}} for an enum. Signatures only, no documentation text. It runs on a board too, to compare
that board's TensorRT with the dumps in this folder.
"""

import inspect
import json
import re
import sys

import tensorrt as trt


def signatures(name, thing):
    """The signature lines of a pybind11 docstring."""
    text = getattr(thing, "__doc__", None) or ""
    lines = [re.sub(r"^\d+\. ", "", line.strip()) for line in text.splitlines()]
    pattern = re.escape(name) + r"\(.*\)( -> .*)?$"
    found = [line.replace("tensorrt.tensorrt.", "") for line in lines if re.match(pattern, line)]
    return found[1:] if len(found) > 1 and "*args, **kwargs" in found[0] else found


def described(cls):
    if hasattr(cls, "__members__"):
        return {"__members__": {key: int(value) for key, value in cls.__members__.items()}}
    out = {}
    for name in sorted(dir(cls)):
        if name.startswith("_") and name != "__init__":
            continue
        value = getattr(cls, name)
        if inspect.isclass(value):
            out[name] = described(value)
        elif callable(value):
            found = signatures(name, value)
            if found or name != "__init__":
                out[name] = found
        else:
            out[name] = "prop" if isinstance(value, property) else "val"
    return out


if __name__ == "__main__":
    facts = {name: described(getattr(trt, name)) for name in sys.argv[1:] if hasattr(trt, name)}
    sys.stdout.write(json.dumps({"__version__": trt.__version__, **facts}))
