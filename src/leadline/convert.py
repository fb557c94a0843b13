"""Published weights of strangers to a checkpoint: read without executing, recognised by names and shapes, verified."""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from leadline.checkpoint import (
    Checkpoint,
    fitting_variants,
    load_checkpoint,
    load_state,
    read_safetensors,
    save_checkpoint,
)
from leadline.errors import CheckpointError, ConfigError, closest
from leadline.models.registry import architecture as architecture_module
from leadline.models.registry import variants
from leadline.output import check_writable, sha256_file
from leadline.torch_files import TorchWeights, read_torch_file

if TYPE_CHECKING:
    from collections.abc import Mapping

    import torch
    from pydantic import BaseModel
    from torch import nn

    State = dict[str, torch.Tensor]


@dataclass(frozen=True)
class Recognised:
    """What a file's tensors were found to be.

    Args:
        architecture: name in the registry.
        config: everything that decides the graph.
        model: the network with the file's weights.
        notes: what the user should know.
        auxiliary: modules trained beside the network, by name.
    """

    architecture: str
    config: BaseModel
    model: nn.Module
    notes: tuple[str, ...] = field(default=())
    auxiliary: Mapping[str, nn.Module] = field(default_factory=dict)


def convert(
    source: Path,
    out: Path,
    *,
    variant: str | None = None,
    metric_max_depth: float | None = None,
    name: str | None = None,
    licence: str | None = None,
    half: bool = False,
) -> tuple[Checkpoint, tuple[str, ...]]:
    """Make a checkpoint of a published file of weights.

    Recognised: FastDepth (every published encoder, upsampler and skip, pruned or not, whole-module pickles and state
    dicts, and tensors with folded batch norms), the authors' ImageNet MobileNet, Depth Anything V2 (the authors' names
    and Hugging Face's), Lite-Mono (the authors' folder, and their ImageNet backbone to start training from), and state
    dicts of this package's own variants.

    Args:
        source: `.pth`, `.pt`, `.pth.tar`, `.bin` or `.safetensors`; or a folder of `encoder.pth` and `depth.pth`, with
            `pose_encoder.pth` and `pose.pth` where they are.
        out: folder to be made, or an older checkpoint to be replaced.
        variant: architecture variant to load into, instead of recognising one.
        metric_max_depth: metres; marks a Depth Anything V2 file as metric (its tensors do not tell).
        name: of the model; otherwise the variant's, or the file's where it is none of the variants.
        licence: of the weights, where the file's origin says one.
        half: store as float16.

    Returns:
        The checkpoint, and notes for the user.

    Raises:
        CheckpointError: the file is damaged, unsafe, or of no known architecture.
        ConfigError: there is no such variant, or options that do not belong together.
        OutputError: the output cannot be written.
    """
    check_writable(out)
    if source.is_dir():
        if metric_max_depth is not None:
            raise ConfigError("--metric-max-depth does not belong to", where=source, mend="leave it out")
        found, files, pickled = _lite_mono_folder(source, variant)
    else:
        tensors, pickled = read_weights(source)
        found, files = recognise(tensors, source, variant=variant, metric_max_depth=metric_max_depth), [source]
    module = architecture_module(found.architecture)
    contract = module.contract(found.config)
    digests = {file.name: sha256_file(file) for file in files}
    origin = "; ".join(f"{file}, SHA-256 {digest}" for file, digest in digests.items())
    changes: dict[str, Any] = {"provenance": f"converted from {origin}"}
    if contract.provenance:
        changes["provenance"] += f"; {contract.provenance}"
    if name or contract.name not in variants():
        changes["name"] = name or source.name.split(".")[0]
    if licence:
        changes["licence"] = licence
    step: dict[str, Any] = {"step": "convert", "file": source.name, "pickled_class": pickled, "notes": found.notes}
    step |= {"files": digests} if source.is_dir() else {"sha256": digests[source.name]}
    save_checkpoint(
        out,
        found.model,
        architecture=found.architecture,
        config=found.config,
        contract=type(contract).model_validate(contract.model_dump() | changes),
        lineage=(step,),
        half=half,
        auxiliary=found.auxiliary,
    )
    return load_checkpoint(out), found.notes


def read_weights(source: Path) -> tuple[State, str]:
    """Tensors by name, and the class name of a pickled module (empty where there is none).

    Raises:
        CheckpointError: the file is missing, empty, truncated, unsafe, or holds NaN or infinity.
    """
    weights = _read(source)
    return weights.state, weights.module


def _read(source: Path) -> TorchWeights:
    if source.is_dir():
        mend = "give the file inside it; a Hugging Face folder is itself a model reference and needs no conversion"
        raise CheckpointError("not a file of weights", where=source, why="it is a folder", mend=mend)
    if not source.exists():
        raise CheckpointError("no such file", where=source, mend="check the path; packaged models need no conversion")
    safe = source.suffix == ".safetensors"
    weights = TorchWeights(read_safetensors(source)) if safe else read_torch_file(source)
    for key, value in weights.state.items():
        if value.is_floating_point() and not bool(value.isfinite().all()):
            raise CheckpointError("unusable weights", where=source, why=f"{key} holds NaN or infinity")
    state = {key: value.float() if value.is_floating_point() else value for key, value in weights.state.items()}
    return TorchWeights(state, weights.module, weights.facts)


def recognise(
    tensors: State, source: Path, *, variant: str | None = None, metric_max_depth: float | None = None
) -> Recognised:
    """The network that these tensors belong to, with them in it.

    Raises:
        CheckpointError: no architecture fits, or the wanted variant does not.
        ConfigError: there is no such variant, or options that do not belong together.
    """
    from leadline.models.lite_mono_weights import part_of

    depth_anything = "pretrained.cls_token" in tensors or "backbone.embeddings.cls_token" in tensors
    part = part_of(tensors)
    if metric_max_depth is not None and not depth_anything:
        why = "only Depth Anything V2 files leave their depth range open"
        raise ConfigError("--metric-max-depth does not belong to", where=source, why=why, mend="leave it out")
    if part is not None:
        return _lite_mono_part(tensors, source, part, variant)
    if variant is not None:
        return _as_variant(tensors, source, variant)
    if depth_anything:
        return _depth_anything(tensors, source, metric_max_depth)
    found = _fastdepth(tensors, source)
    if found is not None:
        return found
    fits = fitting_variants({key: tuple(value.shape) for key, value in tensors.items()})
    if fits:
        note = () if len(fits) == 1 else (f"also fits {', '.join(fits[1:])}: choose with --architecture",)
        known = _as_variant(tensors, source, fits[0])
        return Recognised(known.architecture, known.config, known.model, note)
    keys = ", ".join(list(tensors)[:3])
    mend = "name it with --architecture VARIANT (see `leadline models`), or bring the network as ONNX with a contract"
    raise CheckpointError("no known architecture fits", where=source, why=f"its tensors begin {keys}", mend=mend)


def _as_variant(tensors: State, source: Path, variant: str) -> Recognised:
    known = variants()
    if variant not in known:
        raise ConfigError("unknown architecture variant", where=variant, mend=closest(variant, known))
    name, config = known[variant]
    return _loaded(name, config, tensors, source)


def _lite_mono_folder(folder: Path, variant: str | None) -> tuple[Recognised, list[Path], str]:
    """The authors' files of a Lite-Mono network, the files that were read, and the class of a pickled module."""
    from leadline.models.lite_mono_weights import (
        DEPTH,
        ENCODER,
        POSE,
        POSE_ENCODER,
        joined,
        nearest_variant,
        without_counters,
    )
    from leadline.models.pose import from_official

    present = [folder / name for name in (ENCODER, DEPTH, POSE_ENCODER, POSE) if (folder / name).exists()]
    names = {file.name for file in present}
    if not names & {ENCODER, DEPTH}:
        _read(folder)  # raises: a folder is no file of weights
    if names not in ({ENCODER, DEPTH}, {ENCODER, DEPTH, POSE_ENCODER, POSE}):
        why = f"{ENCODER} and {DEPTH} belong together, and so do {POSE_ENCODER} and {POSE}"
        raise CheckpointError(f"only {', '.join(sorted(names))} found", where=folder, why=why)
    weights = {file.name: _read(file) for file in present}
    states = {name: without_counters(each.state) for name, each in weights.items()}
    state = joined(states[ENCODER][0], states[DEPTH][0])
    height, width = (weights[ENCODER].facts.get(side) for side in ("height", "width"))
    size = (height, width) if isinstance(height, int) and isinstance(width, int) else None
    chosen = variant or nearest_variant(state, size)
    found = _as_variant(state, folder, chosen)
    counters = sum(count for _, count in states.values())
    notes = [f"{counters} of thop's operation counters left out"] if counters else []
    if size != (found.config.height, found.config.width) and variant is None:  # type: ignore[attr-defined]
        made = f"made for {size[0]},{size[1]}" if size else "of unknown input size"
        notes.append(f"the files are {made}; dilations and input size are those of {chosen}, see --architecture")
    auxiliary = {"pose": from_official(states[POSE_ENCODER][0], states[POSE][0])} if POSE in states else {}
    pickled = next((each.module for each in weights.values() if each.module), "")
    return Recognised(found.architecture, found.config, found.model, tuple(notes), auxiliary), present, pickled


def _lite_mono_part(tensors: State, source: Path, part: str, variant: str | None) -> Recognised:
    """The authors' ImageNet backbone as a start for training; any other single file of theirs is half a network."""
    from leadline.models.lite_mono_weights import ENCODER, backbone, nearest_variant, without_counters

    if part != "imagenet":
        mend = f"give the folder that holds both {ENCODER} and depth.pth"
        raise CheckpointError(
            "half a Lite-Mono network", where=source, why=f"its tensors are those of {part}", mend=mend
        )
    encoder = backbone(without_counters(tensors)[0])
    chosen = variant or nearest_variant(encoder, None)
    known = variants()
    if chosen not in known:
        raise ConfigError("unknown architecture variant", where=chosen, mend=closest(chosen, known))
    name, config = known[chosen]
    fresh = architecture_module(name).build(config).state_dict()
    own = {key: value for key, value in fresh.items() if not key.startswith("encoder.") or ".attention." in key}
    note = "an ImageNet classifier: the encoder is its own, the depth decoder is untrained; train it before use"
    return _loaded(name, config, {**own, **encoder}, source, note)


def _loaded(name: str, config: BaseModel, tensors: State, source: Path, *notes: str) -> Recognised:
    model = architecture_module(name).build(config)
    load_state(model, _with_counters(model, tensors), where=source)
    return Recognised(name, config, model.eval(), notes)


def _with_counters(model: nn.Module, tensors: State) -> State:
    """Add the batch norms' step counters, which files of PyTorch before 0.4.1 do not have and inference never reads."""
    counters = {key: value for key, value in model.state_dict().items() if key.endswith(".num_batches_tracked")}
    missing = {
        key: value
        for key, value in counters.items()
        if key not in tensors and key.replace("num_batches_tracked", "running_var") in tensors
    }
    return {**tensors, **missing}


def _fastdepth(tensors: State, source: Path) -> Recognised | None:
    from leadline.models import fastdepth, fastdepth_names, fastdepth_weights

    shapes = {key: tuple(value.shape) for key, value in tensors.items()}
    folded = fastdepth_names.folded_config(shapes)
    if folded is not None:
        model = fastdepth.build(folded)
        fastdepth_weights.from_folded_tensors(model, tensors)
        return Recognised("fastdepth", folded, model.eval(), ("batch norms were folded: each is now the identity",))
    config = fastdepth_names.config_from_shapes(shapes)
    if config is not None:
        return _loaded("fastdepth", config, tensors, source)
    config = fastdepth_names.imagenet_mobilenet(shapes)
    if config is None:
        return None
    model = fastdepth.build(config)
    names = {key: fastdepth_names.encoder_key(key) for key in tensors}
    encoder = {name: tensors[key] for key, name in names.items() if name is not None}
    state = {**model.state_dict(), **encoder}
    note = "an ImageNet classifier: the encoder is its own, the depth decoder is untrained; train it before use"
    return _loaded("fastdepth", config, state, source, note)


def _depth_anything(tensors: State, source: Path, max_depth: float | None) -> Recognised:
    from leadline.models.depth_anything_weights import from_hugging_face, from_official

    if "pretrained.cls_token" in tensors:
        _need_range(source, max_depth)
        config, state = from_official(tensors, "relative" if max_depth is None else "metric", max_depth)
    else:
        values = _config_beside(source, tensors)
        if max_depth is not None:
            values |= {"depth_estimation_type": "metric", "max_depth": max_depth}
        elif "depth_estimation_type" not in values:
            _need_range(source, max_depth)
        config, state = from_hugging_face(values, tensors, positions="scale_factor_offset")
    return _loaded("depth-anything-v2", config, state, source)


def _need_range(source: Path, max_depth: float | None) -> None:
    """Relative and metric files hold the same tensors; only their names tell, and a wrong guess would be silent."""
    if max_depth is None and "metric" in source.name.lower():
        mend = "give --metric-max-depth 20 (indoor, Hypersim) or 80 (outdoor, Virtual KITTI 2)"
        raise ConfigError("depth range unknown", where=source, why="its name says that it is metric", mend=mend)


def _config_beside(source: Path, tensors: State) -> dict[str, Any]:
    """The Hugging Face `config.json` in the same folder, or what the released networks of this size have in it."""
    try:
        values = json.loads(source.with_name("config.json").read_bytes())
    except FileNotFoundError:
        values = None
    except ValueError as error:
        raise CheckpointError("unreadable", where=source.with_name("config.json"), why=str(error)) from error
    if isinstance(values, dict) and values.get("model_type") == "depth_anything":
        return values
    width = tensors["backbone.embeddings.cls_token"].shape[-1]
    indices = [5, 12, 18, 24] if width == 1024 else [3, 6, 9, 12]  # SPEC.md 6.2, counted from 1
    return {"backbone_config": {"num_attention_heads": width // 64, "out_indices": indices, "model_type": "dinov2"}}
