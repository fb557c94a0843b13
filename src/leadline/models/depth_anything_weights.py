"""Weights of Depth Anything V2 under their published names: the authors' files and Hugging Face folders (SPEC.md 6.2).

Both give the configuration that the tensors need and the tensors under this project's names, which are the authors'.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Any, Literal

import torch
from pydantic import ValidationError

from leadline.errors import CheckpointError
from leadline.models.depth_anything import SIZES, Config

if TYPE_CHECKING:
    from collections.abc import Mapping

    from torch import Tensor

    from leadline.models.dinov2 import PositionRule

    State = dict[str, Tensor]

_BLOCK = r"^backbone\.encoder\.layer\.(\d+)\."
_RENAMES: tuple[tuple[str, str], ...] = (
    (r"^backbone\.embeddings\.(cls_token|mask_token)$", r"pretrained.\1"),
    (r"^backbone\.embeddings\.position_embeddings$", "pretrained.pos_embed"),
    (r"^backbone\.embeddings\.patch_embeddings\.projection\.", "pretrained.patch_embed.proj."),
    (r"^backbone\.layernorm\.", "pretrained.norm."),
    (_BLOCK + r"layer_scale([12])\.lambda1$", r"pretrained.blocks.\1.ls\2.gamma"),
    (_BLOCK + r"attention\.(?:output\.dense|o_proj)\.", r"pretrained.blocks.\1.attn.proj."),
    (_BLOCK + r"attention\.(?:attention\.)?(query|key|value|q_proj|k_proj|v_proj)\.", r"pretrained.blocks.\1.attn.\2."),
    (_BLOCK + r"(norm[12]|mlp\.fc[12])\.", r"pretrained.blocks.\1.\2."),
    (r"^neck\.reassemble_stage\.layers\.(\d)\.projection\.", r"depth_head.projects.\1."),
    (r"^neck\.reassemble_stage\.layers\.(\d)\.resize\.", r"depth_head.resize_layers.\1."),
    *((rf"^neck\.convs\.{j}\.", f"depth_head.scratch.layer{j + 1}_rn.") for j in range(4)),
    *((rf"^neck\.fusion_stage\.layers\.{4 - n}\.", f"depth_head.scratch.refinenet{n}.") for n in range(1, 5)),
    (r"\.projection\.(weight|bias)$", r".out_conv.\1"),
    (r"\.residual_layer([12])\.convolution([12])\.", r".resConfUnit\1.conv\2."),
    (r"^head\.conv1\.", "depth_head.scratch.output_conv1."),
    (r"^head\.conv2\.", "depth_head.scratch.output_conv2.0."),
    (r"^head\.conv3\.", "depth_head.scratch.output_conv2.2."),
)
_THIRDS = (("query", "q_proj"), ("key", "k_proj"), ("value", "v_proj"))
# What the implementation here fixes; transformers' defaults are the same values.
_BACKBONE_NEEDS = {
    "model_type": "dinov2",
    "hidden_act": "gelu",
    "qkv_bias": True,
    "use_swiglu_ffn": False,
    "apply_layernorm": True,
    "layer_norm_eps": 1e-6,
    "num_channels": 3,
}
_HEAD_NEEDS = {"reassemble_factors": [4, 2, 1, 0.5], "head_in_index": -1}


def from_official(
    tensors: Mapping[str, Tensor], head: Literal["relative", "metric"] = "relative", max_depth: float | None = None
) -> tuple[Config, State]:
    """Configuration and state dict from the tensors of an official `.pth` (vits, vitb or vitl).

    Args:
        tensors: key to tensor; a `module.` before every key is dropped.
        head: relative and metric files hold the same keys and shapes, so the caller must say which it is.
        max_depth: metres, for a metric head: 20 indoor (Hypersim), 80 outdoor (Virtual KITTI 2).

    Raises:
        CheckpointError: the tensors are none of the three sizes, or a metric head comes without its `max_depth`.
    """
    state = {key.removeprefix("module."): value for key, value in tensors.items()}
    dim, depth = _token_width(state), _depth(state)
    known = {(config.dim, config.depth): config for config in SIZES.values()}
    if (dim, depth) not in known:
        sizes = ", ".join(f"{name} {config.dim} x {config.depth}" for name, config in SIZES.items())
        why = f"{depth} blocks of {dim} channels; released are {sizes}"
        raise CheckpointError("not a Depth Anything V2 network that was released", why=why)
    if (head == "metric") != (max_depth is not None):
        mend = "give 20 for the indoor and 80 for the outdoor networks, and nothing for a relative one"
        why = f"head {head}, max_depth {max_depth}"
        raise CheckpointError("max_depth belongs to a metric head", why=why, mend=mend)
    values = known[dim, depth].model_dump() | {"head": head, "max_depth": max_depth}
    return Config.model_validate(values), {key: value.float() for key, value in state.items()}


def is_supported(values: Mapping[str, Any]) -> bool:
    """Whether a Hugging Face `config.json` describes a network that `from_hugging_face` can build."""
    if values.get("model_type") != "depth_anything":
        return False
    backbone = _backbone(values)
    fits = all(backbone.get(key, needed) == needed for key, needed in _BACKBONE_NEEDS.items())
    return fits and all(_plain(values.get(key, needed)) == needed for key, needed in _HEAD_NEEDS.items())


def from_hugging_face(
    values: Mapping[str, Any], tensors: Mapping[str, Tensor], positions: PositionRule = "size"
) -> tuple[Config, State]:
    """Configuration and state dict from a Hugging Face `config.json` and its tensors, names of v4 and of v5.

    Args:
        values: the parsed `config.json`; channel counts are read from the tensors, not from here.
        tensors: key to tensor.
        positions: `size` gives transformers' numbers; `scale_factor_offset` the authors' (they differ by about 1e-4
            at other sizes than 518 x 518).

    Raises:
        CheckpointError: a tensor is missing, unknown, or of an unexpected shape.
    """
    state = _joined({_official_name(key): value.float() for key, value in tensors.items()})
    backbone, metric = _backbone(values), values.get("depth_estimation_type") == "metric"
    dim, depth = _token_width(state), _depth(state)
    state.setdefault("pretrained.mask_token", torch.zeros(1, dim))  # transformers may leave it out; nothing reads it
    try:
        shape = {key: tuple(value.shape) for key, value in state.items()}
        heads = int(backbone.get("num_attention_heads", 12))
        config = Config(
            dim=dim,
            heads=(heads,) * depth,
            head_width=dim // heads,
            mlp=tuple(shape[f"pretrained.blocks.{i}.mlp.fc1.weight"][0] for i in range(depth)),
            taken=_taken(backbone),
            patch=shape["pretrained.patch_embed.proj.weight"][-1],
            grid=round((shape["pretrained.pos_embed"][1] - 1) ** 0.5),
            positions=positions,
            features=shape["depth_head.scratch.layer1_rn.weight"][0],
            out_channels=tuple(shape[f"depth_head.projects.{j}.weight"][0] for j in range(4)),
            head_channels=(
                shape["depth_head.scratch.output_conv1.weight"][0],
                shape["depth_head.scratch.output_conv2.0.weight"][0],
            ),
            head="metric" if metric else "relative",
            max_depth=float(values.get("max_depth") or 1) if metric else None,
        )
    except KeyError as error:
        raise CheckpointError("not complete weights of Depth Anything", why=f"no tensor {error}") from error
    except (ValidationError, IndexError, ZeroDivisionError) as error:
        why = error.errors()[0]["msg"] if isinstance(error, ValidationError) else str(error)
        raise CheckpointError("weights and config.json contradict each other", why=why) from error
    return config, state


def _official_name(key: str) -> str:
    for pattern, replacement in _RENAMES:
        key = re.sub(pattern, replacement, key)
    return key


def _joined(state: State) -> State:
    """Query, key and value of each block as one tensor `qkv`, in this order."""
    joined = {}
    for key, value in state.items():
        place = re.match(r"^(.*\.attn\.)(?:query|q_proj)\.(weight|bias)$", key)
        if place:
            before, after = place.groups()
            names = [next((n for n in pair if f"{before}{n}.{after}" in state), pair[0]) for pair in _THIRDS]
            missing = [f"{before}{name}.{after}" for name in names if f"{before}{name}.{after}" not in state]
            if missing:
                raise CheckpointError("not complete weights of Depth Anything", why=f"no tensor {missing[0]!r}")
            joined[f"{before}qkv.{after}"] = torch.cat([state[f"{before}{name}.{after}"] for name in names])
        elif not re.search(r"\.attn\.(?:key|value|k_proj|v_proj)\.", key):
            joined[key] = value
    return joined


def _backbone(values: Mapping[str, Any]) -> dict[str, Any]:
    default = {"num_attention_heads": 6, "out_indices": [9, 10, 11, 12], "model_type": "dinov2"}  # transformers' own
    found = values.get("backbone_config")
    if isinstance(found, dict):
        return found
    return default if not values.get("backbone") else {"model_type": "unknown"}


def _taken(backbone: Mapping[str, Any]) -> tuple[int, int, int, int]:
    """Transformers counts stages from 1, after the stem; here blocks count from 0."""
    indices = backbone.get("out_indices")
    if indices is None:
        names = [str(name) for name in backbone.get("out_features") or ()]
        indices = [int(name.removeprefix("stage")) for name in names if name.removeprefix("stage").isdigit()]
    if len(indices) != 4:
        raise CheckpointError("weights and config.json contradict each other", why=f"out_indices are {indices}, not 4")
    first, second, third, fourth = (int(index) - 1 for index in indices)
    return first, second, third, fourth


def _token_width(state: Mapping[str, Tensor]) -> int:
    token = state.get("pretrained.cls_token")
    if token is None:
        first = next(iter(state), "none")
        why = f"no tensor 'pretrained.cls_token'; the first is {first!r}"
        raise CheckpointError("not weights of Depth Anything", why=why)
    return int(token.shape[-1])


def _depth(state: Mapping[str, Tensor]) -> int:
    found = (re.match(r"^pretrained\.blocks\.(\d+)\.", key) for key in state)
    return 1 + max((int(match[1]) for match in found if match), default=-1)


def _plain(value: Any) -> Any:
    return list(value) if isinstance(value, tuple) else value
