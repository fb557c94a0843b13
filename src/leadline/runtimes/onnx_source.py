"""A network that exists only as an ONNX file, in the place of a PyTorch one: to be exported and quantised further."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import nn

from leadline.bundle import check_external_data
from leadline.errors import BundleError
from leadline.runtimes.onnx_runtime import open_file

if TYPE_CHECKING:
    from pathlib import Path

    import onnx

    from leadline.contract import Contract


class OnnxNetwork(nn.Module):
    """Computes the file in ONNX Runtime FP32, which is then the reference that an export is compared with.

    Args:
        path: an ONNX file with one picture input and a depth map as its first output.
        contract: what it expects and returns.

    Raises:
        BundleError: the file is damaged or unsafe, is quantised already, or has no picture input.
        ContractError: the contract does not fit the file.
    """

    def __init__(self, path: Path, contract: Contract) -> None:
        super().__init__()
        check_external_data(path)
        self._session = open_file(path, contract)
        self.path = path
        if any(node.op_type in ("QuantizeLinear", "DequantizeLinear") for node in self.proto().graph.node):
            mend = "give the file that it was made from"
            raise BundleError("already quantised", where=path, why="it holds Q/DQ pairs", mend=mend)

    def forward(self, image: torch.Tensor) -> torch.Tensor:
        """N x 3 x H x W float32 to N x 1 x H x W."""
        return torch.from_numpy(self._session.run(image.detach().cpu().numpy()))

    def proto(self) -> onnx.ModelProto:
        """The graph with its weights."""
        import onnx

        return onnx.load(self.path)

    def extra_repr(self) -> str:
        """Changes when the file does."""
        from leadline.output import sha256_file

        return sha256_file(self.path)


def fixed_graph(network: OnnxNetwork, contract: Contract) -> onnx.ModelProto:
    """The file's graph with the names that exports have and, unless the contract is dynamic, one fixed input size."""
    from onnx.shape_inference import infer_shapes

    proto = network.proto()
    graph = proto.graph
    constants = {tensor.name for tensor in graph.initializer}
    source = next(value for value in graph.input if value.name not in constants)
    if not contract.input.dynamic:
        shape = (1, 3, contract.input.height, contract.input.width)
        for side, length in zip(source.type.tensor_type.shape.dim, shape, strict=True):
            side.Clear()
            side.dim_value = length
        del graph.value_info[:]  # shapes of the open size
        del graph.output[1:]
        graph.output[0].type.tensor_type.ClearField("shape")
    fixed: onnx.ModelProto = infer_shapes(proto, data_prop=True)
    return fixed
