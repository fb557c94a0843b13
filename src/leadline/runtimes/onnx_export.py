"""Any depth network as one ONNX file: fixed size, or truly open batch, height and width."""

from __future__ import annotations

import hashlib
import logging
import math
import warnings
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from leadline.errors import UnavailableError, one_line
from leadline.output import write_atomic

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    import onnx
    from torch import nn

    from leadline.contract import Contract

OPSET = 18
INPUT, OUTPUT = "input", "depth"


def export_onnx(model: nn.Module, contract: Contract, cache: Path | None = None, *, batch: int = 1) -> onnx.ModelProto:
    """Export to ONNX, BatchNorm folded, input `input` (N x 3 x H x W float32), output `depth` (N x 1 x H x W float32).

    Exporting is costly and several precisions share its result, so it is kept in memory, and in `cache` if given.

    Args:
        model: the network, float32; an `OnnxNetwork` is its own export.
        contract: of the exported file: a fixed input gives N = 1 and its size; a dynamic one leaves N, H and W open
            within the contract's limits.
        cache: folder that keeps the graphs for other processes.
        batch: pictures that one run may take; above 1, N is left open at a fixed size too.

    Raises:
        UnavailableError: the exporter does not know an operator of the network, or the network fixes a size that
            should stay open.
    """
    import onnx

    from leadline.runtimes.onnx_source import OnnxNetwork, fixed_graph

    if isinstance(model, OnnxNetwork):
        return fixed_graph(model, contract)
    key = _fingerprint(model, contract, batch > 1)
    kept = cache / f"{key[:32]}.onnx" if cache is not None else None
    if key not in _recent and kept is not None and kept.is_file():
        _remember(key, kept.read_bytes())
    if key not in _recent:
        _remember(key, _exported(model, contract, batch > 1).SerializeToString(deterministic=True))
    if kept is not None and not kept.is_file():
        write_atomic(kept, _recent[key])
    return onnx.load_model_from_string(_recent[key])


_recent: dict[str, bytes] = {}
KEPT_BYTES = 256 * 2**20


def _remember(key: str, graph: bytes) -> None:
    """Keep the graph, and of the earlier ones the latest that fit into KEPT_BYTES."""
    _recent[key] = graph
    while len(_recent) > 1 and sum(map(len, _recent.values())) > KEPT_BYTES:
        del _recent[next(iter(_recent))]


def _fingerprint(model: nn.Module, contract: Contract, batches: bool) -> str:
    """Changes with any weight, any module and any field of the input."""
    import torch

    digest = hashlib.sha256(
        f"{torch.__version__}{OPSET}{type(model)}{model!r}{contract.input.model_dump_json()}{'N' * batches}".encode()
    )
    for name, tensor in model.state_dict().items():
        digest.update(name.encode())
        digest.update(tensor.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().data)
    return digest.hexdigest()


def _exported(model: nn.Module, contract: Contract, batches: bool) -> onnx.ModelProto:
    import onnx
    import torch

    spec = contract.input
    dims = _open_sides(contract) if spec.dynamic else _open_batch() if batches else None
    # A batch of 1 would be taken as a constant where the batch is open (RUNTIMES.md, pitfall 3).
    example = torch.zeros(2 if dims else 1, 3, spec.height, spec.width)
    example += torch.linspace(-1, 1, spec.width)
    device = next((p.device for p in model.parameters()), torch.device("cpu"))
    was_training = model.training
    model.eval()
    try:
        with quiet_exporter(), torch.no_grad():
            program = torch.onnx.export(
                model,
                (example.to(device),),
                dynamo=True,
                opset_version=OPSET,
                input_names=[INPUT],
                output_names=[OUTPUT],
                dynamic_shapes=(dims,) if dims else None,
                verbose=False,
            )
    except (RuntimeError, ValueError, TypeError, NotImplementedError) as error:
        why = one_line(error)
        mend = "export a fixed size" if spec.dynamic else "use runtime torch"
        raise UnavailableError("cannot export to ONNX", where=contract.name, why=why, mend=mend) from error
    finally:
        model.train(was_training)
    assert program is not None
    proto: onnx.ModelProto = program.model_proto
    _strip(proto)
    onnx.checker.check_model(proto, full_check=True)
    return proto


def _open_sides(contract: Contract) -> dict[int, Any]:
    """Batch, height and width as symbols: sides are multiples of the contract's step within its limits."""
    from torch.export import Dim

    spec = contract.input
    step = spec.multiple_of
    low = max(2, math.ceil(spec.min_side / step))  # torch.export takes sizes 0 and 1 as constants
    high = spec.max_side // step
    sides = (Dim(name, min=low, max=high) for name in ("rows", "columns"))
    height, width = (step * side if step > 1 else side for side in sides)
    return _open_batch() | {2: height, 3: width}


def _open_batch() -> dict[int, Any]:
    from torch.export import Dim

    return {0: Dim("batch", min=1, max=64)}


def _strip(proto: onnx.ModelProto) -> None:
    """Remove what only the exporter's machine is interested in, source paths among it."""
    graphs: list[Any] = [proto.graph, *proto.functions]
    for holder in [proto, *graphs]:
        del holder.metadata_props[:]
        holder.doc_string = ""
    for graph in graphs:
        for node in graph.node:
            del node.metadata_props[:]
            node.doc_string = ""
    for value in [*proto.graph.input, *proto.graph.output, *proto.graph.value_info, *proto.graph.initializer]:
        del value.metadata_props[:]
        value.doc_string = ""


@contextmanager
def quiet_exporter(logger: str = "torch.onnx._internal.exporter._registration") -> Iterator[None]:
    """Silence two known remarks of torch 2.13: that torchvision is absent, and a deprecation inside torch itself.

    Args:
        logger: the name under which torch remarks the first.
    """
    registration = logging.getLogger(logger)
    level = registration.level
    registration.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", message=r".*isinstance\(treespec, LeafSpec\)", category=FutureWarning)
            yield
    finally:
        registration.setLevel(level)
