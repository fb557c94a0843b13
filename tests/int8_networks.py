"""What tests of INT8 training share: saving its networks, and comparing their integers with an engine's."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import torch
from torch import nn

import tiny_models
from leadline.checkpoint import save_checkpoint
from leadline.compression.quantised_network import QuantisedNetwork
from leadline.compression.quantisers import ActivationGrid
from leadline.reference import LoadedModel
from leadline.runtimes.base import ExportOptions, Precision, bundle_contract
from leadline.runtimes.onnx_export import export_onnx
from leadline.runtimes.onnx_points import Naming
from leadline.runtimes.onnx_trained import trained_graphs

STATIC = ExportOptions(precision=Precision.INT8_STATIC)


def save(made: LoadedModel, folder: Path) -> None:
    """Write a network with its grids as a checkpoint."""
    assert made.architecture is not None
    assert made.config is not None
    facts: dict[str, Any] = {"architecture": made.architecture, "config": made.config, "contract": made.contract}
    save_checkpoint(folder, made.model, quantization=made.quantization, **facts)


def said(model: nn.Module, values: np.ndarray) -> np.ndarray:
    """The network's output."""
    with torch.no_grad():
        output: np.ndarray = model(torch.from_numpy(values)).numpy()
    return output


def integers_apart(made: LoadedModel, network: QuantisedNetwork, size: tuple[int, int]) -> dict[str, float]:
    """Share of each quantised tensor whose integers differ from the exported graph's, run literally, in its order."""
    import onnx

    proto = export_onnx(made.model, bundle_contract(made.contract, size, dynamic=False))
    ready, quantised = trained_graphs(proto, STATIC, made)
    naming = Naming(ready, made.model)
    tensors = [node.input[0] for node in quantised.graph.node if node.op_type == "QuantizeLinear"]
    outputs = [f"{tensor}_DequantizeLinear_Output" for tensor in tensors]
    for output in outputs:
        quantised.graph.output.append(onnx.helper.make_tensor_value_info(output, onnx.TensorProto.FLOAT, None))
    settings = onnxruntime.SessionOptions()
    settings.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    settings.intra_op_num_threads = 1
    session = onnxruntime.InferenceSession(quantised.SerializeToString(), settings, ["CPUExecutionProvider"])
    x = tiny_models.picture(0, size)
    literal = dict(zip([naming.name(tensor) for tensor in tensors], session.run(outputs, {"input": x}), strict=True))
    rounded: dict[str, list[torch.Tensor]] = {}
    hooks = [
        module.register_forward_hook(lambda *call, key=key: rounded.setdefault(key, []).append(call[2]))
        for key, module in network.graph.named_modules()
        if isinstance(module, ActivationGrid)
    ]
    said(network.eval(), x)
    for hook in hooks:
        hook.remove()
    found: dict[str, float] = {}
    for point in network.points:
        theirs = literal[point.name]
        ours = [one for one in rounded[f"grids.{network.groups[point.group]}"] if one.numel() == theirs.size]
        steps = [np.abs(one.numpy().reshape(theirs.shape) - theirs) / point.grid.step for one in ours]
        if steps:  # nearest neighbours are not rounded again
            found[point.name] = min(float((each > 0.5).mean()) for each in steps)
    return found
