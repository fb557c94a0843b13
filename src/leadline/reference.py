"""Model references: the one way in which every verb and `leadline.load` name a model."""

from __future__ import annotations

import importlib.resources
import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from leadline.bundle import check_external_data, load_bundle
from leadline.checkpoint import load_checkpoint
from leadline.contract import Contract
from leadline.errors import ModelReferenceError, closest
from leadline.manifest import manifest_kind
from leadline.models.registry import architecture, variants
from leadline.runtimes.base import SessionOptions, required

if TYPE_CHECKING:
    from pydantic import BaseModel
    from torch import nn

    from leadline.models.quantization import Quantization
    from leadline.runtimes.base import Session

HUGGING_FACE, RANDOM = "hf:", "random:"
_TAKEN = "give a name from `leadline models`, a checkpoint or bundle folder, an .onnx file, or hf:OWNER/NAME"
_CONTRACT_EXAMPLE = (
    '{"name": "my-model", "input": {"height": 224, "width": 320, "mean": [0.485, 0.456, 0.406], '
    '"std": [0.229, 0.224, 0.225]}, "output": {"kind": "metric_depth"}}'
)


@dataclass(frozen=True)
class LoadedModel:
    """A network in memory with what is known about it.

    Args:
        model: float32, eval mode, N x 3 x H x W to N x 1 x H x W.
        contract: what it expects and returns.
        name: what messages and tables call it.
        lineage: the steps that made it, oldest first.
        architecture: its entry in the registry; None for a network that is not ours.
        config: the architecture's configuration.
        quantization: INT8 grids that training left, and that its weights lie on; None where it was not trained so.
    """

    model: nn.Module
    contract: Contract
    name: str
    lineage: tuple[dict[str, Any], ...] = ()
    architecture: str | None = None
    config: BaseModel | None = field(default=None, repr=False)
    quantization: Quantization | None = field(default=None, repr=False)


def zoo() -> dict[str, Path]:
    """Names and folders of the checkpoints that come with the package."""
    root = Path(str(importlib.resources.files("leadline"))) / "zoo"
    if not root.is_dir():
        return {}
    return {path.name: path for path in sorted(root.iterdir()) if manifest_kind(path) == "checkpoint"}


def load_model(ref: str) -> LoadedModel:
    """The PyTorch network that a reference names.

    Args:
        ref: zoo name, checkpoint folder, `hf:owner/name`, local Hugging Face folder, or `random:VARIANT` (random
            weights, repeatable; for measuring speed only).

    Raises:
        ModelReferenceError: it names nothing, or something that holds no PyTorch network (a bundle, an ONNX file).
        CheckpointError: the checkpoint is damaged or does not fit its configuration.
        UnavailableError: an `hf:` reference without transformers.
    """
    if ref.startswith(RANDOM):
        return _random_model(ref.removeprefix(RANDOM))
    if ref.startswith(HUGGING_FACE):
        return _hugging_face_model(ref.removeprefix(HUGGING_FACE), name=ref)
    packaged = zoo()
    path = packaged.get(ref, Path(ref))
    kind = manifest_kind(path)
    if kind == "checkpoint":
        return _checkpoint_model(path)
    if kind == "bundle" or (path.suffix == ".onnx" and path.is_file()):
        why, mend = "an exported file holds no PyTorch network", "give the checkpoint it was exported from"
        raise ModelReferenceError("cannot use here", where=ref, why=why, mend=mend)
    if _is_hugging_face(path):
        return _hugging_face_model(str(path), name=path.name)
    raise _names_nothing(ref, path, packaged)


def load_exportable(ref: str) -> LoadedModel:
    """What `load_model` takes, and an ONNX file with a contract beside it: a network to export, not to train.

    Raises:
        BundleError: the ONNX file is damaged or unsafe, or is quantised already.
        See `load_model` for the rest.
    """
    path = Path(ref)
    if ref in zoo() or path.suffix != ".onnx" or not path.is_file():
        return load_model(ref)
    from leadline.runtimes.onnx_source import OnnxNetwork

    contract = onnx_contract(path)
    return LoadedModel(OnnxNetwork(path, contract), contract, path.stem, ({"step": "onnx", "source": path.name},))


def fresh_variant(ref: str) -> str | None:
    """The variant whose fresh weights a reference names for training, or None where it names trained ones.

    `random:VARIANT` always does; a variant's bare name does unless the package has weights of that name.
    """
    bare = ref.removeprefix(RANDOM)
    return bare if bare in variants() and (bare != ref or ref not in zoo()) else None


def check_reference(ref: str) -> None:
    """Pass where a reference names something, without opening it: before a long run, for each of its models.

    Raises:
        ModelReferenceError: it names nothing.
    """
    packaged = zoo()
    path = packaged.get(ref, Path(ref))
    named = ref.startswith((RANDOM, HUGGING_FACE)) or manifest_kind(path) is not None or _is_hugging_face(path)
    if not named and not (path.suffix == ".onnx" and path.is_file()):
        raise _names_nothing(ref, path, packaged)


def open_session(ref: str, options: SessionOptions | None = None, size: tuple[int, int] | None = None) -> Session:
    """A session on whatever the reference names: bundles and ONNX files in their engine, networks in PyTorch.

    Args:
        ref: everything that `load_model` takes, a bundle folder, or an `.onnx` file with a contract beside it.
        options: threads and device; None takes the defaults.
        size: (height, width) of the network's input in pixels, where the contract is dynamic.

    Raises:
        ModelReferenceError: it names nothing, or an ONNX file without a contract.
        BundleError: the bundle is damaged or unsafe.
        ContractError: the size is not allowed.
        UnavailableError: the engine is missing.
    """
    options = options or SessionOptions()
    path = Path(ref)
    if ref not in zoo() and manifest_kind(path) == "bundle":
        bundle = load_bundle(path)
        session = required(bundle.runtime).open(bundle, options)
    elif path.suffix == ".onnx" and path.is_file():
        from leadline.runtimes.onnx_runtime import open_file

        check_external_data(path)
        session = open_file(path, onnx_contract(path), options)
    else:
        from leadline.runtimes.torch_eager import open_model

        loaded = load_model(ref)
        session = open_model(loaded.model, loaded.contract, options)
    if size is not None:
        session.contract = _at_size(session.contract, size)
    return session


def onnx_contract(path: Path) -> Contract:
    """The contract beside an ONNX file: `<stem>.contract.json`, or `contract.json` in the same folder.

    Raises:
        ModelReferenceError: there is none; the message shows how to write one.
        ContractError: it is not valid.
    """
    for candidate in (path.with_suffix(".contract.json"), path.with_name("contract.json")):
        if candidate.is_file():
            return Contract.load(candidate)
    name = path.with_suffix(".contract.json").name
    mend = f"write {name} beside it, for example {_CONTRACT_EXAMPLE}"
    raise ModelReferenceError("no contract for", where=path, why="its input and output kind are unknown", mend=mend)


def _checkpoint_model(folder: Path) -> LoadedModel:
    saved = load_checkpoint(folder)
    grids = saved.quantization()
    return LoadedModel(
        saved.model(), saved.contract, saved.name, saved.lineage, saved.architecture, saved.config, grids
    )


def _random_model(variant: str) -> LoadedModel:
    import torch

    known = variants()
    if variant not in known:
        raise ModelReferenceError("unknown architecture variant", where=variant, mend=closest(variant, known))
    name, config = known[variant]
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = architecture(name).build(config).eval()
    label = RANDOM + variant
    provenance = "random weights: for speed and size, not for depth"
    contract = architecture(name).contract(config).model_copy(update={"name": label, "provenance": provenance})
    return LoadedModel(model, contract, label, ({"step": "random", "variant": variant, "seed": 0},), name, config)


def _hugging_face_model(place: str, name: str) -> LoadedModel:
    from leadline.models.hugging_face import load_hugging_face

    found = load_hugging_face(place)
    lineage = ({"step": "hugging-face", "source": place},)
    return LoadedModel(found.model, found.contract, name, lineage, found.architecture, found.config)


def _is_hugging_face(path: Path) -> bool:
    try:
        values = json.loads((path / "config.json").read_bytes())
    except (OSError, ValueError):
        return False
    return isinstance(values, dict) and "model_type" in values


def _at_size(contract: Contract, size: tuple[int, int]) -> Contract:
    height, width = contract.checked_size(size)
    changed = contract.input.model_copy(update={"height": height, "width": width})
    return contract.model_copy(update={"input": changed})


def _names_nothing(ref: str, path: Path, packaged: dict[str, Path]) -> ModelReferenceError:
    what = "no model"
    if not ref.strip():
        return ModelReferenceError(what, why="the reference is empty", mend=_TAKEN)
    if "://" in ref:
        mend = "for a Hugging Face model write hf:OWNER/NAME; anything else, download it first"
        return ModelReferenceError(what, where=ref, why="a URL is no model reference", mend=mend)
    if path.is_dir():
        inside = sorted(child.name for child in path.iterdir() if manifest_kind(child))
        if inside:
            return ModelReferenceError(
                what, where=ref, why="the folder itself is none", mend=f"did you mean {path / inside[0]}?"
            )
        why = "the folder holds no manifest.json of Leadline and no Hugging Face config.json"
        return ModelReferenceError(what, where=ref, why=why, mend=_TAKEN)
    if path.suffix in (".pth", ".pt", ".tar", ".safetensors", ".ckpt", ".bin"):
        mend = f"make a checkpoint of it: leadline convert {ref} --out DIR"
        return ModelReferenceError(what, where=ref, why="weights without a contract", mend=mend)
    if path.exists():
        return ModelReferenceError(what, where=ref, why=f"a {path.suffix or 'plain'} file", mend=_TAKEN)
    if path.suffix or len(path.parts) > 1:
        return ModelReferenceError(what, where=ref, why="no such file or folder", mend=f"check the path; {_TAKEN}")
    mend = closest(ref, packaged) if packaged else "see `leadline models`"
    known = variants()
    if ref in known:
        mend = f"random weights of this architecture, for speed only, are {RANDOM}{ref}"
    return ModelReferenceError(what, where=ref, why="neither a zoo name nor a file or folder", mend=mend)
