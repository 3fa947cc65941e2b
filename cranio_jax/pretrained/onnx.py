"""insightface's IResNets from their ONNX release, whose tensors have no names to go by: the graph says which is which.

The release has most batch norms folded into the convolutions before them. The network keeps its batch norms; where one
was folded it gets the convolution's bias and leaves the rest as it is.
"""

import pathlib
from typing import Any

import numpy as np

from cranio_jax.errors import InputError

_EPSILON = 1e-5  # of the network's batch norms, whose root of (variance + epsilon) is to be one
_IDLE = ("Dropout", "Identity")  # nothing at inference


class _Graph:
    """A graph as a walk along it needs it."""

    def __init__(self, file: pathlib.Path):
        try:
            import onnx
        except ModuleNotFoundError:
            raise InputError(
                f"{file} is an ONNX file: install onnx to read it, or use a safetensors file"
            ) from None
        try:
            model = onnx.load(file)
        except Exception as error:  # protobuf's own kind, of no module that is public
            raise InputError(f"{file}: damaged, or no ONNX file ({type(error).__name__})") from None
        self.file, self.name = file, model.graph.input[0].name if model.graph.input else ""
        self.values = {
            tensor.name: onnx.numpy_helper.to_array(tensor) for tensor in model.graph.initializer
        }
        self.users: dict[str, list[Any]] = {}
        tensors = {
            n for n, value in self.values.items() if value.dtype.kind == "f" and value.size > 1
        }
        self.unread = tensors & {name for node in model.graph.node for name in node.input}
        self.sources: dict[str, str] = {}
        for node in model.graph.node:
            if (
                node.op_type == "Identity" and node.input[0] in self.values
            ):  # equal tensors are stored once
                self.values[node.output[0]] = self.values[node.input[0]]
                self.sources[node.output[0]] = self.sources.get(node.input[0], node.input[0])
            for name in node.input:
                self.users.setdefault(name, []).append(node)

    def after(self, name: str) -> dict[str, Any]:
        """The nodes that take `name`, by what they do; the idle are passed over."""
        found = {}
        for node in self.users.get(name, []):
            found |= self.after(node.output[0]) if node.op_type in _IDLE else {node.op_type: node}
        return found

    def take(self, name: str, *kinds: str) -> Any:
        """The node of one of `kinds` that takes `name`. Raises InputError where there is none."""
        found = self.after(name)
        for kind in kinds:
            if kind in found:
                return found[kind]
        pooled = found.keys() & {"GlobalAveragePool", "ReduceMean"}
        raise InputError(
            f"{self.file.name} is no IResNet{' without squeeze-and-excitation' if pooled else ''}: "
            f"{name!r} goes to {', '.join(found) or 'nothing'}, not to {kinds[0]}"
        )

    def parameters(self, node: Any) -> list[np.ndarray]:
        """A node's tensors, in its order."""
        names = [name for name in node.input if name in self.values]
        self.unread -= {self.sources.get(name, name) for name in names}
        return [self.values[name] for name in names]

    def norm(self, name: str, node: Any) -> dict[str, np.ndarray]:
        """A batch norm's tensors by torch's keys, its variance for the epsilon of ours."""
        weight, bias, mean, variance = self.parameters(node)
        epsilon = next((a.f for a in node.attribute if a.name == "epsilon"), _EPSILON)
        return _norm(name, [weight, bias, mean, variance + np.float32(epsilon - _EPSILON)])


def _norm(name: str, parameters: list[np.ndarray]) -> dict[str, np.ndarray]:
    keys = ("weight", "bias", "running_mean", "running_var")
    return {f"{name}.{key}": value for key, value in zip(keys, parameters, strict=True)}


def _conv_norm(
    graph: _Graph, value: str, conv: str, norm: str, found: dict[str, np.ndarray]
) -> str:
    """Notes a convolution and the batch norm behind it, folded or not; returns the name of what comes out."""
    node = graph.take(value, "Conv")
    weight, *bias = graph.parameters(node)
    found[f"{conv}.weight"] = weight
    if not bias:
        node = graph.take(node.output[0], "BatchNormalization")
        found |= graph.norm(norm, node)
    else:
        one = np.ones(len(weight), np.float32)
        found |= _norm(norm, [one, bias[0], 0 * one, one - np.float32(_EPSILON)])
    return node.output[0]


def read_iresnet(file: pathlib.Path) -> dict[str, np.ndarray]:
    """Returns an IResNet's tensors from its ONNX file, by the keys of the PyTorch network.

    Raises InputError if the file holds another network, or tensors besides.
    """
    graph = _Graph(file)
    try:
        found = _walk(graph)
    except ValueError as error:  # a node with more or fewer tensors
        raise InputError(f"{file.name} is no IResNet: a layer is another ({error})") from None
    if graph.unread:
        raise InputError(
            f"{file.name} holds {len(graph.unread)} tensors more than an IResNet, such as "
            f"{min(graph.unread)!r}"
        )
    return found


def _walk(graph: _Graph) -> dict[str, np.ndarray]:
    found: dict[str, np.ndarray] = {}

    def slope(value: str, name: str) -> str:
        node = graph.take(value, "PRelu")
        found[f"{name}.weight"] = graph.parameters(node)[0].reshape(-1)
        return node.output[0]

    value = slope(_conv_norm(graph, graph.name, "conv1", "bn1", found), "prelu")
    stage, block = 0, 0
    while True:
        norm = graph.take(value, "BatchNormalization")
        if "Conv" not in graph.after(norm.output[0]):
            break
        shortcut = "Conv" in graph.after(value)  # the first block of each stage has one
        stage, block = (stage + 1, 0) if shortcut else (stage, block + 1)
        prefix = f"layer{stage}.{block}"
        found |= graph.norm(f"{prefix}.bn1", norm)
        inner = _conv_norm(graph, norm.output[0], f"{prefix}.conv1", f"{prefix}.bn2", found)
        inner = _conv_norm(
            graph, slope(inner, f"{prefix}.prelu"), f"{prefix}.conv2", f"{prefix}.bn3", found
        )
        if shortcut:
            _conv_norm(graph, value, f"{prefix}.downsample.0", f"{prefix}.downsample.1", found)
        value = graph.take(inner, "Add").output[0]
    found |= graph.norm("bn2", norm)
    flat = graph.take(norm.output[0], "Flatten", "Reshape")
    linear = graph.take(flat.output[0], "Gemm")
    found["fc.weight"], found["fc.bias"] = graph.parameters(linear)
    last = graph.take(linear.output[0], "BatchNormalization")
    found |= graph.norm("features", last)
    if more := graph.after(last.output[0]):
        raise InputError(
            f"{graph.file.name} is no IResNet: its last batch norm goes to {', '.join(more)}"
        )
    return found
