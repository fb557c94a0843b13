"""PyTorch, eager: the reference that every export is compared with, in FP32, FP16, BF16 and dynamic INT8."""

from __future__ import annotations

import copy
import importlib.metadata
import importlib.util
import json
import warnings
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np

from leadline.errors import BundleError, ConfigError, one_line
from leadline.runtimes.base import (
    Availability,
    Exportable,
    ExportOptions,
    Precision,
    Runtime,
    Session,
    SessionOptions,
    bundle_contract,
    bundle_of,
    refuse_precision,
)

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    import torch
    from numpy.typing import NDArray
    from torch import nn

    from leadline.bundle import Bundle
    from leadline.contract import Contract
    from leadline.runtimes.layer_time import LayerTime


class TorchRuntime(Runtime):
    """Plain PyTorch on a CPU, `cuda` or `mps`; a bundle is safetensors and JSON, so it loads without a pickle."""

    name: ClassVar[str] = "torch"
    precisions: ClassVar[tuple[Precision, ...]] = (
        Precision.FP32,
        Precision.FP16,
        Precision.BF16,
        Precision.INT8_DYNAMIC,
    )
    dynamic: ClassVar[bool] = True
    packages: ClassVar[str] = "leadline"  # it builds the network, so there is no example without it
    takes_onnx: ClassVar[bool] = False

    def availability(self) -> Availability:
        """Always, unless the installation is broken."""
        if importlib.util.find_spec("torch") is None:
            return Availability(False, reason="torch is not installed", install="pip install torch")
        return Availability(True, version=importlib.metadata.version("torch"))

    def export(self, source: Exportable, options: ExportOptions, out: Path) -> Bundle:
        """Write weights and configuration; dynamic INT8 keeps float weights and is quantised when it is opened.

        Raises:
            ConfigError: the network is not one of the registry's architectures, or the precision is unknown here.
        """
        import torch
        from safetensors.torch import save_file

        refuse_precision(self, options)
        if source.architecture is None or source.config is None:
            why = "a torch bundle holds weights and a configuration of this package's own architectures"
            mend = "export it to onnxruntime or openvino, or use the model reference itself"
            raise ConfigError("cannot write a torch bundle of", where=source.name, why=why, mend=mend)
        contract = bundle_contract(source.contract, options.size, options.dynamic)
        kinds = {Precision.BF16: torch.bfloat16, Precision.FP16: torch.float16}
        kind = kinds.get(options.precision, torch.float32)
        weights = {
            key: (value.to(kind) if value.is_floating_point() else value).contiguous().clone()
            for key, value in source.model.state_dict().items()
        }
        save_file(weights, out / "weights.safetensors")
        config = {"architecture": source.architecture, "config": source.config.model_dump(mode="json")}
        (out / "config.json").write_text(json.dumps(config, indent=2) + "\n", encoding="utf-8")
        return bundle_of(self, source, options, contract, out, {"per_channel": options.per_channel})

    def open(self, bundle: Bundle, options: SessionOptions) -> Session:
        """Build the network from its configuration and load the weights.

        Raises:
            BundleError: the configuration cannot be read.
            CheckpointError: weights and configuration do not fit each other.
        """
        from leadline.checkpoint import load_state, read_safetensors
        from leadline.models.registry import architecture, parse_config

        try:
            saved = json.loads(bundle.file("config.json").read_text(encoding="utf-8"))
            name, values = saved["architecture"], saved["config"]
        except (KeyError, TypeError, ValueError) as error:
            raise BundleError("unreadable configuration", where=bundle.folder, why=str(error)) from error
        path = bundle.file("weights.safetensors")
        model = architecture(name).build(parse_config(name, values))
        load_state(model, read_safetensors(path), where=path)
        precision, per_channel = Precision(bundle.precision), bool(bundle.details.get("per_channel", True))
        return open_model(model, bundle.contract, options, precision=precision, per_channel=per_channel)

    def open_network(self, source: Exportable, options: SessionOptions) -> Session:
        """The network as it is in memory."""
        return open_model(source.model, source.contract, options)


RUNTIME = TorchRuntime()


def open_model(
    model: nn.Module,
    contract: Contract,
    options: SessionOptions | None = None,
    *,
    precision: Precision = Precision.FP32,
    per_channel: bool = True,
) -> Session:
    """A session on a network in memory; the network itself is not changed.

    Args:
        model: N x 3 x H x W float32 to N x 1 x H x W.
        contract: what it expects and returns.
        options: threads and device.
        precision: fp32; bf16 converts weights and activations; fp16 does where the device is no CPU, which keeps its
            arithmetic in FP32; int8-dynamic quantises the Linear layers.
        per_channel: one weight scale per output channel (PyTorch's own default is one per tensor).

    Raises:
        ConfigError: another precision or device, or dynamic INT8 of a network without Linear layers.
    """
    import torch

    options = options or SessionOptions()
    try:
        device = torch.device(options.device)
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError) as error:
        told = one_line(error)
        why = "this PyTorch is built without it" if "not compiled with" in told else told
        raise ConfigError("torch cannot use the device", where=options.device, why=why, mend="use cpu") from error
    if device.type == "cuda":
        torch.backends.cudnn.allow_tf32 = False  # PyTorch lets convolutions round to 10 bits unless told otherwise
    if precision is Precision.BF16 or (precision is Precision.FP16 and device.type != "cpu"):
        kind = torch.bfloat16 if precision is Precision.BF16 else torch.float16
        network = _with_narrow_weights(model, kind).to(device)
        notes = [f"convolutions and matrix products in {precision.upper()}, normalisations in FP32"]
        return _TorchSession(network, contract, options.threads, precision.value, notes)
    if precision is Precision.INT8_DYNAMIC:
        network, count = _dynamic_int8(model, per_channel)
        scales = "per channel" if per_channel else "per tensor"
        notes = [f"{count} Linear layers in dynamic INT8 ({scales}), quantised when opened; the rest in FP32"]
        return _TorchSession(network, contract, options.threads, "int8 (Linear), fp32", notes)
    if precision is Precision.FP16:
        network = _with_narrow_weights(model, torch.float16).float()  # what the file holds, widened
        notes = ["weights rounded to FP16; a CPU computes in FP32, a GPU would in FP16"]
        return _TorchSession(network, contract, options.threads, "fp32 (fp16 weights)", notes)
    if precision is not Precision.FP32:
        raise ConfigError("torch has no precision", where=str(precision), mend="known: fp32, fp16, bf16, int8-dynamic")
    network = model.eval() if device.type == "cpu" else copy.deepcopy(model).eval().to(device)
    return _TorchSession(network, contract, options.threads, "fp32", [])


class _TorchSession(Session):
    def __init__(self, model: nn.Module, contract: Contract, threads: int, precision: str, notes: list[str]) -> None:
        import torch

        super().__init__("torch", contract, notes)
        self.model = model
        self._threads = threads or torch.get_num_threads()
        self._precision = precision
        self._parts: dict[str, float] | None = None
        self.device = next((p.device for p in model.parameters()), torch.device("cpu"))

    @property
    def precision_ran(self) -> str:
        return self._precision

    def _infer(self, values: NDArray[np.float32]) -> NDArray[np.float32]:
        import torch

        if torch.get_num_threads() != self._threads:
            torch.set_num_threads(self._threads)
        narrow = {"bf16": torch.bfloat16, "fp16": torch.float16}.get(self._precision)
        autocast = torch.autocast(self.device.type, narrow or torch.bfloat16, enabled=narrow is not None)
        tensor = torch.from_numpy(np.ascontiguousarray(values))
        with torch.inference_mode(), autocast:
            if self.device.type == "cuda":
                return self._infer_timed(tensor)
            output: NDArray[np.float32] = self.model(tensor.to(self.device)).float().cpu().numpy()
        return output

    def _infer_timed(self, tensor: torch.Tensor) -> NDArray[np.float32]:
        """Copy, compute and copy back on the GPU's stream, with marks between them."""
        import torch

        marks: list[Any] = [torch.cuda.Event(enable_timing=True) for _ in range(4)]  # type: ignore[no-untyped-call]
        marks[0].record()
        moved = tensor.pin_memory().to(self.device, non_blocking=True)
        marks[1].record()
        result = self.model(moved).float()
        marks[2].record()
        output: NDArray[np.float32] = result.cpu().numpy()
        marks[3].record()
        torch.cuda.synchronize(self.device)
        names = ("to_device", "compute", "from_device")
        self._parts = {name: float(marks[i].elapsed_time(marks[i + 1])) for i, name in enumerate(names)}
        return output

    def last_parts(self) -> dict[str, float] | None:
        return self._parts

    def profile(self, values: NDArray[np.float32], runs: int) -> list[LayerTime]:
        import torch

        from leadline.runtimes.torch_layers import layer_times

        wait = torch.cuda.synchronize if self.device.type == "cuda" else lambda: None
        return layer_times(self.model, lambda: self._infer(values), runs, wait)

    def device_mib(self) -> float | None:
        import torch

        return torch.cuda.max_memory_allocated(self.device) / 2**20 if self.device.type == "cuda" else None


def _with_narrow_weights(model: nn.Module, kind: torch.dtype) -> nn.Module:
    """A copy whose convolutions and linear layers hold BF16 or FP16; autocast brings their inputs to it."""
    from torch import nn

    network = copy.deepcopy(model).eval()
    for layer in network.modules():
        if isinstance(layer, nn.Conv2d | nn.ConvTranspose2d | nn.Linear):
            layer.to(kind)
    return network


def _dynamic_int8(model: nn.Module, per_channel: bool) -> tuple[nn.Module, int]:
    from torch import nn
    from torch.ao import quantization

    count = sum(isinstance(layer, nn.Linear) for layer in model.modules())
    if not count:
        why = "PyTorch's dynamic INT8 takes Linear layers, and this network has none"
        mend = "use int8-static on onnxruntime or openvino"
        raise ConfigError("nothing to quantise dynamically", where=type(model).__name__, why=why, mend=mend)
    scheme = quantization.per_channel_dynamic_qconfig if per_channel else quantization.default_dynamic_qconfig
    with _without_deprecations():
        quantised: nn.Module = quantization.quantize_dynamic(  # type: ignore[no-untyped-call]
            model.eval(), {nn.Linear: scheme}
        )
    return quantised, count


@contextmanager
def _without_deprecations() -> Iterator[None]:
    """torch.ao is announced to move; the study's own method is this one, and torch 2.13 still computes it."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="torch.ao.quantization is deprecated", category=DeprecationWarning)
        warnings.filterwarnings("ignore", message="torch.quantize_per_tensor", category=UserWarning)
        yield
