"""An ONNX graph, node by node: values are known by name, and asked for twice are computed once.

Two kinds of initializers. *Learned* ones change with every version of the weights and bear the name
of the array that they hold, or that they are computed from; a serving engine which can be refitted
replaces them and nothing else. *Constants* (bounds, shapes, the scale of one) are the network's and
never change. Names and order follow from the calls alone, so that equal networks give equal bytes.

Opset 17 is the newest whose reductions still take their axes as attributes, and all that is needed
here; TensorRT 10 reads opsets 9 to 20 (onnx/onnx-tensorrt, docs/operators.md of branch 10.1-GA).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import helper, numpy_helper

OPSET = 17
_IR_VERSION = 8
_BATCH = "batch"
INPUT = "x"

Attribute = int | tuple[int, ...]


class Graph:
    """A graph in the making.

    Args:
        name: Of the graph.
    """

    def __init__(self, name: str) -> None:
        self._name = name
        self._nodes: list[onnx.NodeProto] = []
        self._values: dict[tuple[object, ...], str] = {}
        self._constants: dict[str, NDArray[np.generic]] = {}
        self._learned: dict[str, NDArray[np.generic]] = {}

    @property
    def learned_arrays(self) -> Mapping[str, NDArray[np.generic]]:
        """Name to what changes with the weights, in the graph's own shapes."""
        return self._learned

    def node(self, op: str, *inputs: str, **attributes: Attribute) -> str:
        """The output of an operator of the standard's own domain.

        Args:
            op: Its name.
            inputs: Names of values.
            attributes: The operator's.
        """
        key = (op, inputs, *sorted(attributes.items()))
        if key not in self._values:
            output = f"{op}.{len(self._nodes)}"
            node = helper.make_node(op, inputs, [output], name=output)
            node.attribute.extend(helper.make_attribute(n, a) for n, a in attributes.items())
            self._nodes.append(node)
            self._values[key] = output
        return self._values[key]

    def learned(self, name: str, array: NDArray[np.generic]) -> str:
        """An initializer that another version of the weights has other values of; its own name."""
        self._learned[name] = np.asarray(array)
        return name

    def constant(self, value: float) -> str:
        """A float32 scalar that is the same in every version."""
        return self._constant(np.array(value, dtype=np.float32))

    def sizes(self, *values: int) -> str:
        """Integers, as shapes and bounds of slices are given: int64 `[n]`."""
        return self._constant(np.array(values, dtype=np.int64))

    def int8_zero(self) -> str:
        """The zero point of int8 codes."""
        return self._constant(np.array(0, dtype=np.int8))

    def _constant(self, array: NDArray[np.generic]) -> str:
        name = f"constant.{array.dtype}.{','.join(map(str, array.flat))}"
        self._constants[name] = array
        return name

    def give(
        self, value: str, name: str, shape: Sequence[int], dtype: type[np.generic] = np.float32
    ) -> None:
        """Make a value the graph's output.

        Args:
            value: Which.
            name: What it is called from outside.
            shape: Of one sample.
            dtype: Its own.
        """
        for node in self._nodes:
            for names in (node.input, node.output):
                names[:] = [name if n == value else n for n in names]
        self._output = _described(name, dtype, shape)

    def serialized(self, input_shape: Sequence[int]) -> bytes:
        """The model's bytes; its one input is `x`, float32 `[batch, *input_shape]`.

        Args:
            input_shape: Of one sample; the batch may have any size.
        """
        initializers = [
            numpy_helper.from_array(np.array(array, order="C"), name)
            for name, array in (self._constants | self._learned).items()
        ]
        graph = helper.make_graph(
            self._nodes,
            self._name,
            [_described(INPUT, np.float32, input_shape)],
            [self._output],
            initializers,
        )
        model = helper.make_model(
            graph,
            producer_name="ffedge",
            opset_imports=[helper.make_opsetid("", OPSET)],
            ir_version=_IR_VERSION,
        )
        serialized: bytes = model.SerializeToString(deterministic=True)
        return serialized


def _described(name: str, dtype: type[np.generic], shape: Sequence[int]) -> onnx.ValueInfoProto:
    kind = helper.np_dtype_to_tensor_dtype(np.dtype(dtype))
    return helper.make_tensor_value_info(name, kind, [_BATCH, *shape])
