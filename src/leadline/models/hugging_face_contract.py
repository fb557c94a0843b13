"""The contract of a Hugging Face folder, read from its own files: what goes in, what comes out, under which licence."""

from __future__ import annotations

import json
import re
from typing import TYPE_CHECKING, Any, Literal

from pydantic import ValidationError

from leadline.contract import Contract, InputSpec, OutputSpec
from leadline.depth import Kind
from leadline.errors import CheckpointError, ContractError, KindError

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

    from leadline.image import Interpolation

REPOSITORY = r"[A-Za-z0-9][\w.-]*/[\w.-]+"  # owner/name
# Pillow's numbers for resampling, as the processors' files store them.
_RESAMPLE: dict[int, Interpolation] = {0: "nearest", 2: "bilinear", 3: "bicubic"}
_GLPN_SIZE = {"height": 480, "width": 640}  # its processor keeps the picture's size: NYU's, for one of the two released
_ZOE_SIZE = {"height": 384, "width": 512}
# What a processor's file may leave out, by model type.
_HALF = {"image_mean": [0.5] * 3, "image_std": [0.5] * 3, "do_normalize": True}
_DEFAULTS: dict[str, dict[str, Any]] = {
    "depth_anything": {"size": 518, "resample": 3, "keep_aspect_ratio": True, "ensure_multiple_of": 14, **_HALF},
    "dpt": {"size": 384, "resample": 3, **_HALF},
    "glpn": {"resample": 2, "do_normalize": False, "ensure_multiple_of": 32},
    "zoedepth": {"size": _ZOE_SIZE, "resample": 2, "keep_aspect_ratio": True, "ensure_multiple_of": 32, **_HALF},
    "depth_pro": {"size": 1536, "resample": 2, **_HALF},
}
_LONGEST = 2800  # pixels; for networks that keep the aspect
_MIDAS_BACKBONES = (None, "bit", "beit", "swinv2")  # the DPT networks of MiDaS; others were trained for metres


def output_kind(values: Mapping[str, Any], folder: Path, kind: Kind | None = None) -> Kind:
    """What a network's values mean, from a table of known model types; never guessed.

    Args:
        values: the parsed `config.json`.
        folder: for messages.
        kind: what the user says it is.

    Raises:
        KindError: the table does not know this network and the user does not say, or says something else than it.
    """
    known = _known_kind(values)
    if known is None and kind is None:
        why = f"nothing in config.json says what model type {values.get('model_type')!r} returns here"
        mend = f"put a contract.json that says it into the folder, or call load_hugging_face with kind={'|'.join(Kind)}"
        raise KindError("unknown output kind", where=folder, why=why, mend=mend)
    if known is not None and kind is not None and known is not kind:
        raise KindError("wrong output kind", where=folder, why=f"this network returns {known}, not {kind}")
    return known or Kind(str(kind))


def _known_kind(values: Mapping[str, Any]) -> Kind | None:
    model_type = values.get("model_type")
    if model_type == "depth_anything":
        metric = values.get("depth_estimation_type", "relative") == "metric"
        return Kind.METRIC_DEPTH if metric else Kind.RELATIVE_DISPARITY
    if model_type == "dpt":
        backbone = values.get("backbone_config")
        inner = backbone.get("model_type", "bit") if isinstance(backbone, dict) else None
        return Kind.RELATIVE_DISPARITY if inner in _MIDAS_BACKBONES else None
    if model_type == "depth_pro":
        return Kind.METRIC_DEPTH if values.get("use_fov_model") else None
    return Kind.METRIC_DEPTH if model_type in ("glpn", "zoedepth") else None


def hugging_face_contract(
    folder: Path, values: Mapping[str, Any], name: str, kind: Kind | None = None, *, max_depth: float | None = None
) -> Contract:
    """Contract from `preprocessor_config.json` (or `processor_config.json`), `config.json` and `README.md`.

    A `contract.json` in the folder, written by the user, goes before all of them.
    Pictures are resized as the folder says, antialiased like transformers' processors. Two of their habits have no
    place in a contract: for a picture smaller than the network's input on both sides they scale by the smaller ratio
    (here, as in the authors' code, both sides reach the input's size), and ZoeDepth's pads by reflection.

    Args:
        folder: holds the files.
        values: the parsed `config.json`.
        name: of the network.
        kind: what the user says it returns.
        max_depth: upper bound of a metric output, metres.

    Raises:
        KindError: see `output_kind`.
        ContractError: no processor file, one whose rule has no place in a contract, or a `contract.json` that is not
            valid.
    """
    model_type = str(values.get("model_type"))
    if (folder / "contract.json").is_file():
        written = Contract.load(folder / "contract.json")
        output_kind(values, folder, kind or written.output.kind)
        return written
    returned = output_kind(values, folder, kind)
    at_least = 0.0 if model_type in _DEFAULTS else None
    align_corners = model_type == "depth_anything"
    return Contract(
        name=name[:200],
        input=_input_spec(folder, model_type),
        output=OutputSpec(kind=returned, minimum=at_least, maximum=max_depth, align_corners=align_corners),
        licence=_licence(folder / "README.md"),
        provenance=f"https://huggingface.co/{name}" if re.fullmatch(REPOSITORY, name) else f"Hugging Face: {name}",
    )


def _input_spec(folder: Path, model_type: str) -> InputSpec:
    rule = _DEFAULTS.get(model_type, {}) | _processor(folder, required=model_type != "depth_anything")
    if model_type == "glpn":
        rule["size"], rule["ensure_multiple_of"] = _GLPN_SIZE, rule.get("size_divisor") or 32
    height, width = _size(rule.get("size"), folder)
    multiple = max(1, round(rule.get("ensure_multiple_of") or 1))
    keep_aspect = bool(rule.get("keep_aspect_ratio"))
    resample = rule.get("resample", 2)
    if resample not in _RESAMPLE:
        raise ContractError("unknown resampling", where=folder, why=f"resample {resample}", mend="known: 0, 2 and 3")
    normalise = rule.get("do_normalize", True)
    dynamic = keep_aspect or model_type == "glpn"
    resize: Literal["keep_aspect", "stretch"] = "keep_aspect" if keep_aspect else "stretch"
    try:
        return InputSpec(
            height=height,
            width=width,
            dynamic=dynamic,
            multiple_of=multiple,
            min_side=multiple,
            max_side=max(_LONGEST, height, width),
            resize=resize,
            interpolation=_RESAMPLE[resample],
            antialias=model_type != "depth_pro",
            value_max=255 * float(rule.get("rescale_factor") or 1 / 255) if rule.get("do_rescale", True) else 255.0,
            mean=tuple(rule.get("image_mean") or (0, 0, 0)) if normalise else (0, 0, 0),
            std=tuple(rule.get("image_std") or (1, 1, 1)) if normalise else (1, 1, 1),
        )
    except (ValidationError, TypeError, ValueError) as error:
        why = error.errors()[0]["msg"] if isinstance(error, ValidationError) else str(error)
        raise ContractError("the processor's rule has no place in a contract", where=folder, why=why) from error


def _processor(folder: Path, *, required: bool) -> dict[str, Any]:
    for name in ("preprocessor_config.json", "processor_config.json"):
        if (folder / name).is_file():
            found = read_json(folder / name)
            inner = found.get("image_processor", found)
            return {key: value for key, value in inner.items() if value is not None} if isinstance(inner, dict) else {}
    if required:
        mend = "copy preprocessor_config.json of the published model into the folder"
        raise ContractError("no processor file", where=folder, why="the input's size and mean are unknown", mend=mend)
    return {}


def _size(size: Any, folder: Path) -> tuple[int, int]:
    if isinstance(size, int):
        return size, size
    if isinstance(size, dict) and isinstance(size.get("height"), int) and isinstance(size.get("width"), int):
        return size["height"], size["width"]
    raise ContractError("the processor's rule has no place in a contract", where=folder, why=f"size is {size}")


def read_json(path: Path) -> dict[str, Any]:
    """The object in a JSON file.

    Raises:
        CheckpointError: the file is missing, or holds no JSON object.
    """
    try:
        values = json.loads(path.read_bytes())
    except (OSError, ValueError) as error:
        raise CheckpointError("cannot read", where=path, why=str(error)) from error
    if not isinstance(values, dict):
        raise CheckpointError("cannot read", where=path, why="not a JSON object")
    return values


def _licence(card: Path) -> str:
    """The `license:` line of a model card's front matter."""
    text = card.read_text(encoding="utf-8", errors="replace") if card.is_file() else ""
    front = re.match(r"^---\s*\n(.*?)\n---", text, flags=re.DOTALL)
    line = re.search(r"^license:\s*[\"']?([\w.+-]+)", front[1], flags=re.MULTILINE) if front else None
    return line[1] if line else "unknown"
