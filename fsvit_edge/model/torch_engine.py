"""The runtime's engine contract in torch: a checkpoint's modules run without an export."""

import hashlib
from collections.abc import Mapping
from pathlib import Path

import torch
from torch import Tensor

from fsvit_edge.fewshot.predictor import FewShotModel
from fsvit_edge.model.checkpoint import load_network
from fsvit_edge.model.graphs import GraphSpec, build_graphs, make_manifest
from fsvit_edge.model.network import FewShotNetwork
from fsvit_edge.runtime.bundle import GraphInfo
from fsvit_edge.runtime.engines.base import Array, Engine, ResidentTensor, TensorSpec, check_feed, on_host
from fsvit_edge.runtime.engines.choose import EngineChoice
from fsvit_edge.runtime.errors import FsvitEdgeError, first_line
from fsvit_edge.runtime.limits import usable_cores, usable_threads


class TorchTensor:
    """A tensor on torch's device."""

    def __init__(self, value: Tensor) -> None:
        self.value = value

    @property
    def shape(self) -> tuple[int, ...]:
        """Sizes of all axes."""
        return tuple(self.value.shape)

    def numpy(self) -> Array:
        """Return the values on the host; on the CPU this is a view."""
        array: Array = self.value.cpu().numpy()
        return array


class TorchEngine(Engine):
    """One graph's module, run eagerly."""

    def __init__(self, spec: GraphSpec, device: torch.device) -> None:
        self._device = device
        self._module: torch.nn.Module | None = spec.module.eval().to(device)
        self.inputs = tuple(
            TensorSpec(
                name,
                tuple(spec.dynamic.get(name, {}).get(axis, size) for axis, size in enumerate(tensor.shape)),
                _dtype(tensor),
            )
            for name, tensor in spec.example.items()
        )
        with torch.inference_mode():
            outputs = spec.module(*(tensor.to(device) for tensor in spec.example.values()))
        # Of a graph with dynamic inputs, the first axis of each output is dynamic and no other.
        self.outputs = tuple(
            TensorSpec(name, ("any", *tensor.shape[1:]) if spec.dynamic else tuple(tensor.shape), _dtype(tensor))
            for name, tensor in zip(spec.outputs, outputs, strict=True)
        )
        self.limits: Mapping[str, int] = {}  # torch has no limits

    def upload(self, array: Array) -> TorchTensor:
        """Copy an array to the device."""
        return TorchTensor(torch.tensor(array, device=self._device))

    def run(self, feed: Mapping[str, Array | ResidentTensor]) -> dict[str, ResidentTensor]:
        """Compute all outputs, new tensors each time; inputs that are torch tensors are not copied."""
        if self._module is None:
            raise FsvitEdgeError("The engine is closed.")
        check_feed(feed, self.inputs)
        values = [feed[spec.name] for spec in self.inputs]
        tensors = [value if isinstance(value, TorchTensor) else self.upload(on_host(value)) for value in values]
        try:
            with torch.inference_mode():
                outputs = self._module(*(tensor.value for tensor in tensors))
        except RuntimeError as error:  # out of device memory, for example
            raise FsvitEdgeError(f"torch failed to run the network: {first_line(error)}.") from error
        return {spec.name: TorchTensor(value) for spec, value in zip(self.outputs, outputs, strict=True)}

    def wait(self) -> None:
        """Wait for torch's device."""
        if self._device.type == "cuda":
            torch.cuda.synchronize(self._device)

    def close(self) -> None:
        """Release the module; a second call does nothing."""
        self._module = None


def open_network(network: FewShotNetwork, device: torch.device | None = None) -> FewShotModel:
    """Open a network as a model that computes in torch; its modules are moved to the device.

    None is the first CUDA device, or the CPU without one.
    """
    place = device or torch.device("cuda" if torch.cuda.is_available() else "cpu")
    specs = build_graphs(network.eval())
    engines = {name: TorchEngine(spec, place) for name, spec in specs.items()}
    graphs = {
        name: GraphInfo("", _digest(specs[name].module), engine.inputs, engine.outputs)
        for name, engine in engines.items()
    }
    manifest = make_manifest(network, graphs, opset=0, parity={})
    choice = EngineChoice("torch", manifest.precision, f"FP32 in torch {torch.__version__} on {place.type}")
    return FewShotModel(manifest, engines, choice)


def use_threads(threads: int | None) -> None:
    """Let torch compute with so many threads in the whole process; None: with every core, if nobody said less."""
    torch.set_num_threads(min(torch.get_num_threads(), usable_cores()) if threads is None else usable_threads(threads))


def open_checkpoint(checkpoint: Path, threads: int | None = None) -> FewShotModel:
    """Open a checkpoint as a model that computes in torch; `threads` are torch's of the whole process."""
    use_threads(threads)
    return open_network(load_network(checkpoint))


def _digest(module: torch.nn.Module) -> str:
    """The sha256 of the weights, in place of a bundle's sha256 of the graph file."""
    digest = hashlib.sha256()
    for name, tensor in sorted(module.state_dict().items()):
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
        digest.update(tensor.detach().cpu().contiguous().view(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()


def _dtype(tensor: Tensor) -> str:
    return str(tensor.dtype).removeprefix("torch.")
