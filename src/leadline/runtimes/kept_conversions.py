"""Costly conversions, kept in memory and in a folder: several precisions start from the same float file."""

from __future__ import annotations

import hashlib
from typing import TYPE_CHECKING

from leadline.output import write_atomic

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from torch import nn

    from leadline.contract import Contract

KEPT_BYTES = 256 * 2**20
_recent: dict[str, bytes] = {}


def kept_conversion(
    model: nn.Module, contract: Contract, form: str, convert: Callable[[], bytes], cache: Path | None = None
) -> bytes:
    """The file that `convert` makes, or has made before of the same network.

    Args:
        model: the network.
        contract: of the file.
        form: what is made, with the converter's version and every option that changes the result.
        convert: makes it.
        cache: folder that keeps files for other processes.
    """
    key = _fingerprint(model, contract, form)
    kept = cache / f"{key[:32]}.bin" if cache is not None else None
    if key not in _recent and kept is not None and kept.is_file():
        _remember(key, kept.read_bytes())
    if key not in _recent:
        _remember(key, convert())
    if kept is not None and not kept.is_file():
        write_atomic(kept, _recent[key])
    return _recent[key]


def _remember(key: str, data: bytes) -> None:
    """Keep the file, and of the earlier ones the latest that fit into KEPT_BYTES."""
    _recent[key] = data
    while len(_recent) > 1 and sum(map(len, _recent.values())) > KEPT_BYTES:
        del _recent[next(iter(_recent))]


def _fingerprint(model: nn.Module, contract: Contract, form: str) -> str:
    """Changes with any weight, any module and any field of the input."""
    import torch

    text = f"{torch.__version__}{form}{type(model)}{model!r}{contract.input.model_dump_json()}"
    digest = hashlib.sha256(text.encode())
    for name, tensor in model.state_dict().items():
        digest.update(name.encode())
        digest.update(tensor.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().data)
    return digest.hexdigest()
