"""Reader of insightface's IResNets in their ONNX release.

The release's tensors have no useful names, so the graph identifies them. Most batch norms are
folded into the convolutions before them. The network keeps its batch norms: a folded one gets the
convolution's bias and is the identity otherwise.
"""

import pathlib
from typing import Any

import numpy as np

from cranio_jax.errors import InputError

_EPSILON = 1e-5  # of the network's batch norms
_IDLE = ("Dropout", "Identity")  # no effect at inference


class _Graph:
    """A graph, indexed for a walk from its input to its output."""

    def __init__(self, file: pathlib.Path):
        try:
            import onnx
        except ModuleNotFoundError:
            raise InputError(
                f"{file} is an ONNX file: install onnx to read it, or use a safetensors file"
            ) from None
        try:
            model = onnx.load(file)
        except Exception as error:  # protobuf's class is in no public module
            raise InputError(f"{file}: damaged, or not ONNX ({type(error).__name__})") from None
        self.file = file
        self.name = model.graph.input[0].name if model.graph.input else ""
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
            # Equal tensors are stored once.
            if node.op_type == "Identity" and node.input[0] in self.values:
                self.values[node.output[0]] = self.values[node.input[0]]
                self.sources[node.output[0]] = self.sources.get(node.input[0], node.input[0])
            for name in node.input:
                self.users.setdefault(name, []).append(node)

    def after(self, name: str) -> dict[str, Any]:
        """Returns the nodes that use `name`, by type; idle ones are skipped."""
        nodes: dict[str, Any] = {}
        for node in self.users.get(name, []):
            if node.op_type in _IDLE:
                nodes |= self.after(node.output[0])
            else:
                nodes[node.op_type] = node
        return nodes

    def take(self, name: str, *kinds: str) -> Any:
        """Returns the node of one of `kinds` that uses `name`. Raises InputError if none does."""
        nodes = self.after(name)
        for kind in kinds:
            if kind in nodes:
                return nodes[kind]
        pooled = nodes.keys() & {"GlobalAveragePool", "ReduceMean"}
        raise InputError(
            f"{self.file.name} is no IResNet{' without squeeze-and-excitation' if pooled else ''}: "
            f"{name!r} goes to {', '.join(nodes) or 'nothing'}, not to {kinds[0]}"
        )

    def parameters(self, node: Any) -> list[np.ndarray]:
        """Returns a node's tensors, in its order."""
        names = [name for name in node.input if name in self.values]
        self.unread -= {self.sources.get(name, name) for name in names}
        return [self.values[name] for name in names]

    def norm(self, name: str, node: Any) -> dict[str, np.ndarray]:
        """Returns a batch norm's tensors by torch's keys; the variance corrects for our epsilon."""
        weight, bias, mean, variance = self.parameters(node)
        epsilon = next((a.f for a in node.attribute if a.name == "epsilon"), _EPSILON)
        return _norm(name, [weight, bias, mean, variance + np.float32(epsilon - _EPSILON)])


def _norm(name: str, parameters: list[np.ndarray]) -> dict[str, np.ndarray]:
    keys = ("weight", "bias", "running_mean", "running_var")
    return {f"{name}.{key}": value for key, value in zip(keys, parameters, strict=True)}


def _conv_norm(
    graph: _Graph, value: str, conv: str, norm: str, tensors: dict[str, np.ndarray]
) -> str:
    """Adds a convolution and the batch norm after it, folded or not, to `tensors`.

    Returns the name of the output.
    """
    node = graph.take(value, "Conv")
    weight, *bias = graph.parameters(node)
    tensors[f"{conv}.weight"] = weight
    if not bias:
        node = graph.take(node.output[0], "BatchNormalization")
        tensors |= graph.norm(norm, node)
    else:
        one = np.ones(len(weight), np.float32)
        tensors |= _norm(norm, [one, bias[0], 0 * one, one - np.float32(_EPSILON)])
    return node.output[0]


def read_iresnet(file: pathlib.Path) -> dict[str, np.ndarray]:
    """Returns an IResNet's tensors from its ONNX file, by the keys of the PyTorch network.

    Raises InputError if the file holds another network, or additional tensors.
    """
    graph = _Graph(file)
    try:
        tensors = _walk(graph)
    except ValueError as error:  # a node with more or fewer tensors
        raise InputError(f"{file.name} is no IResNet: a layer differs ({error})") from None
    if graph.unread:
        raise InputError(
            f"{file.name} holds {len(graph.unread)} tensors more than an IResNet, such as "
            f"{min(graph.unread)!r}"
        )
    return tensors


def _walk(graph: _Graph) -> dict[str, np.ndarray]:
    """Returns the tensors of an IResNet's graph by torch's keys."""
    tensors: dict[str, np.ndarray] = {}

    def slope(value: str, name: str) -> str:
        node = graph.take(value, "PRelu")
        tensors[f"{name}.weight"] = graph.parameters(node)[0].reshape(-1)
        return node.output[0]

    # The stem.
    value = slope(_conv_norm(graph, graph.name, "conv1", "bn1", tensors), "prelu")
    # The blocks of all stages.
    stage, block = 0, 0
    while True:
        norm = graph.take(value, "BatchNormalization")
        if "Conv" not in graph.after(norm.output[0]):
            break
        shortcut = "Conv" in graph.after(value)  # the first block of each stage has one
        stage, block = (stage + 1, 0) if shortcut else (stage, block + 1)
        prefix = f"layer{stage}.{block}"
        tensors |= graph.norm(f"{prefix}.bn1", norm)
        inner = _conv_norm(graph, norm.output[0], f"{prefix}.conv1", f"{prefix}.bn2", tensors)
        inner = slope(inner, f"{prefix}.prelu")
        inner = _conv_norm(graph, inner, f"{prefix}.conv2", f"{prefix}.bn3", tensors)
        if shortcut:
            _conv_norm(graph, value, f"{prefix}.downsample.0", f"{prefix}.downsample.1", tensors)
        value = graph.take(inner, "Add").output[0]
    # The head.
    tensors |= graph.norm("bn2", norm)
    flat = graph.take(norm.output[0], "Flatten", "Reshape")
    linear = graph.take(flat.output[0], "Gemm")
    tensors["fc.weight"], tensors["fc.bias"] = graph.parameters(linear)
    last = graph.take(linear.output[0], "BatchNormalization")
    tensors |= graph.norm("features", last)
    if more := graph.after(last.output[0]):
        raise InputError(
            f"{graph.file.name} is no IResNet: its last batch norm goes to {', '.join(more)}"
        )
    return tensors
