"""A network as an ExecuTorch program: exported by PyTorch, quantised by PT2E, lowered to XNNPACK."""

from __future__ import annotations

import logging
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from leadline.errors import ConfigError, UnavailableError, one_line
from leadline.runtimes.options import Precision
from leadline.runtimes.quiet import quiet_engine

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    import torch
    from torch import fx, nn

    from leadline.contract import Contract
    from leadline.runtimes.options import ExportOptions


AVERAGING = 0.1  # share of a new picture in the moving average of extremes


def lowered(model: nn.Module, contract: Contract, options: ExportOptions, *, name: str) -> bytes:
    """The program as the bytes of a `.pte` file: one picture of the contract's size, float32 in and out.

    Args:
        model: the network, float32.
        contract: of the file.
        options: `precision`, `calibration`, `per_channel`, and `exclude`: names of the network's modules.
        name: of the network, for messages.

    Raises:
        UnavailableError: ExecuTorch does not know an operator of the network.
        ConfigError: dynamic INT8 of a network without Linear layers, or an excluded module that does not exist.
    """
    import torch

    for module in options.exclude:
        if module not in dict(model.named_modules()):
            mend = "give module names of the PyTorch network"
            raise ConfigError(f"no module of {name} to exclude", where=module, mend=mend)
    linear = any(isinstance(layer, torch.nn.Linear) for layer in model.modules())
    if options.precision is Precision.INT8_DYNAMIC and not linear:
        why = "ExecuTorch quantises Linear layers so, and this network has none"
        raise ConfigError("nothing to quantise dynamically", where=name, why=why, mend="use int8-static")
    spec = contract.input
    device = next((p.device for p in model.parameters()), torch.device("cpu"))
    example = (torch.zeros(1, 3, spec.height, spec.width) + torch.linspace(-1, 1, spec.width)).to(device)
    with quiet_engine(), _own_logging():  # deprecations inside torch, libraries for other machines that do not load
        try:
            network: nn.Module = model.eval()
            if options.precision is not Precision.FP32:
                network = _quantised(network, example, options, attention=linear)
            return _to_program(network, example, dynamic=options.precision is Precision.INT8_DYNAMIC)
        except ConfigError:
            raise
        except Exception as error:
            cause = error.__cause__ or error
            why = f"{type(cause).__name__}: {one_line(cause)}"
            mend = "export it to onnxruntime"
            raise UnavailableError("executorch cannot export", where=name, why=why, mend=mend) from error


def _to_program(network: nn.Module, example: torch.Tensor, *, dynamic: bool) -> bytes:
    import torch
    from executorch.backends.xnnpack.partition import xnnpack_partitioner
    from executorch.exir import to_edge_transform_and_lower

    parts: list[Any] = [xnnpack_partitioner.XnnpackPartitioner()]
    if dynamic:  # layers whose input is quantised while running are taken one by one, then the rest
        parts.insert(0, xnnpack_partitioner.XnnpackDynamicallyQuantizedPartitioner(per_op_mode=True))
    with torch.no_grad():
        program = torch.export.export(network, (example,))
        return bytes(to_edge_transform_and_lower(program, partitioner=parts).to_executorch().buffer)


def _quantised(model: nn.Module, example: torch.Tensor, options: ExportOptions, *, attention: bool) -> nn.Module:
    """The network with INT8 pairs around its layers, as PyTorch's PT2E places them for XNNPACK.

    The last convolution and what follows stay in float: 256 levels of depth show as steps. In networks with Linear
    layers what lies between these and convolutions stays in float too: residual sums have outliers.
    """
    import torch
    from executorch.backends.xnnpack.quantizer.xnnpack_quantizer import XNNPACKQuantizer
    from torchao.quantization.pt2e.quantize_pt2e import convert_pt2e, prepare_pt2e

    dynamic = options.precision is Precision.INT8_DYNAMIC
    scheme = _scheme(options, dynamic=dynamic)
    aten = torch.ops.aten
    kinds: list[Any] = [aten.linear.default]
    if not dynamic:
        kinds += [aten.conv2d.default, aten.conv_transpose2d.input]

    class Quantiser(XNNPACKQuantizer):  # type: ignore[misc]
        """XNNPACK's, which knows ReLU after a convolution; ReLU6 is fused with it as well, so no grid goes between."""

        def annotate(self, model: fx.GraphModule) -> fx.GraphModule:
            annotated: fx.GraphModule = super().annotate(model)
            _move_behind_clamps(annotated)
            return annotated

    quantiser = Quantiser()
    with torch.no_grad():
        graph = torch.export.export(model, (example,)).module()
        if attention or dynamic:
            for kind in kinds:
                quantiser.set_operator_type(kind, scheme)
        else:
            quantiser.set_global(scheme)
        quantiser.set_filter_function(_wanted(graph, options.exclude, head=not dynamic))
        prepared = prepare_pt2e(graph, quantiser)
        for values in [example.cpu().numpy()] if dynamic else options.calibration:
            prepared(torch.from_numpy(values).to(example.device))
        made: nn.Module = convert_pt2e(prepared)
    return made


def _move_behind_clamps(graph: fx.GraphModule) -> None:
    """Give a convolution's output grid to the clamp (ReLU6) that alone follows it, and whose range is narrower."""
    for node in graph.graph.nodes:
        users = list(node.users)
        note = node.meta.get("quantization_annotation")
        if "conv" not in str(node.target) or note is None or note.output_qspec is None or len(users) != 1:
            continue
        if "hardtanh" in str(users[0].target):
            users[0].meta["quantization_annotation"] = type(note)(output_qspec=note.output_qspec, _annotated=True)
            note.output_qspec = None


def _scheme(options: ExportOptions, *, dynamic: bool) -> Any:
    """XNNPACK's form of INT8, with ranges by the moving average of each picture's extremes.

    Its own preset counts histograms, which is far slower and no better; the extremes of all pictures leave most of the
    256 levels to a few outliers.
    """
    from dataclasses import replace

    from executorch.backends.xnnpack.quantizer.xnnpack_quantizer import get_symmetric_quantization_config
    from torchao.quantization.pt2e import MovingAverageMinMaxObserver

    scheme = get_symmetric_quantization_config(is_per_channel=options.per_channel, is_dynamic=dynamic)
    if dynamic:
        return scheme
    extremes = MovingAverageMinMaxObserver.with_args(eps=2**-12, averaging_constant=AVERAGING)
    activations = replace(scheme.input_activation, observer_or_fake_quant_ctr=extremes)
    return replace(scheme, input_activation=activations, output_activation=activations)


def _wanted(graph: Any, exclude: tuple[str, ...], *, head: bool) -> Callable[[fx.Node], bool]:
    """Which nodes may become INT8: not those of excluded modules nor, with `head`, from the last convolution on."""
    nodes = list(graph.graph.nodes)
    heavy = [index for index, node in enumerate(nodes) if "conv" in str(node.target) and node.op == "call_function"]
    first_float = heavy[-1] if head and heavy else len(nodes)
    kept = {node.name for node in nodes[first_float:]}

    def wanted(node: fx.Node) -> bool:
        modules = [str(path) for path, _ in node.meta.get("nn_module_stack", {}).values()]
        inside = any(path == name or path.startswith(f"{name}.") for path in modules for name in exclude)
        return node.name not in kept and not inside

    return wanted


@contextmanager
def _own_logging() -> Iterator[None]:
    """Undo what importing ExecuTorch's partitioner does to the root logger of the program that uses us."""
    root = logging.getLogger()
    handlers, level = list(root.handlers), root.level
    try:
        yield
    finally:
        root.handlers[:] = handlers
        root.setLevel(level)
