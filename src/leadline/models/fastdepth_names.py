"""Which FastDepth network a set of published tensors belongs to: the configuration read from names and shapes.

The names are those of the authors' files (SPEC.md 1.4), so the tensors load unchanged; channel counts come from the
shapes, so pruned networks need no list of their own.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Any

from pydantic import ValidationError

from leadline.errors import CheckpointError
from leadline.models import resnet
from leadline.models.fastdepth_config import Config

if TYPE_CHECKING:
    from collections.abc import Mapping

    Shapes = Mapping[str, tuple[int, ...]]

# First weight of the decoder's first stage, behind `decoder.`: (upsampler, depthwise, name of a stage).
_DECODERS = {
    "conv1.0.0.weight": ("nnconv", True, "conv{}"),
    "conv1.0.weight": ("nnconv", False, "conv{}"),
    "convt1.0.0.weight": ("deconv", True, "convt{}"),
    "convt1.0.weight": ("deconv", False, "convt{}"),
    "upconv1.1.weight": ("upconv", False, "upconv{}"),
    "upproj1.branch1.0.weight": ("upproj", False, "upproj{}"),
}


def config_from_shapes(shapes: Shapes) -> Config | None:
    """The configuration of published FastDepth tensors, or None where the names are of another network.

    Nearest and bilinear doubling have the same tensors; nearest, the published one, is assumed.

    Args:
        shapes: tensor name to shape.

    Raises:
        CheckpointError: the names are of FastDepth, but a tensor is missing or the widths contradict each other.
    """
    if any(key.startswith("decoder.lateral.") for key in shapes):  # this package's own, not published
        return None
    try:
        if "conv0.0.weight" in shapes and any(key.startswith("decode_conv1.") for key in shapes):
            return Config.model_validate(_skip_network(shapes))
        if "mobilenet.0.0.weight" in shapes and any(key.startswith("decoder.") for key in shapes):
            encoder = {"encoder": "mobilenet-v1", "encoder_widths": _mobilenet_widths(shapes, "mobilenet.{}.")}
            return Config.model_validate({**encoder, **_decoder(shapes)})
        if "layer4.0.conv1.weight" in shapes and any(key.startswith("decoder.") for key in shapes):
            return Config.model_validate({**_resnet(shapes), **_decoder(shapes)})
    except KeyError as error:
        raise CheckpointError("not a complete FastDepth network", why=f"no tensor {error}") from error
    except ValidationError as error:
        raise CheckpointError("not a FastDepth network", why=error.errors()[0]["msg"]) from error
    return None


def folded_config(shapes: Shapes) -> Config | None:
    """The configuration of tensors with folded batch norms (`fastdepth_weights.from_folded_tensors`), or None.

    Raises:
        CheckpointError: a tensor is missing or the widths contradict each other.
    """
    if "conv1.dw.weight" not in shapes or "decode_conv1.dw.weight" not in shapes:
        return None
    try:
        encoder = (shapes["conv0.weight"][0], *(shapes[f"conv{i}.pw.weight"][0] for i in range(1, 14)))
        decoder = tuple(shapes[f"decode_conv{k}.pw.weight"][0] for k in range(1, 6))
        inputs = [shapes[f"decode_conv{k}.dw.weight"][0] for k in range(1, 6)]
        values = {
            "encoder_widths": encoder,
            # Conversions to other engines bound the encoder by ReLU alone.
            "activation": "relu",
            "kernel": shapes["decode_conv1.dw.weight"][-1],
            "depthwise": True,
            "decoder_widths": decoder,
            "skip": "concat" if inputs[2] > decoder[1] else "add",
        }
        return Config.model_validate(values)
    except KeyError as error:
        raise CheckpointError("not a complete FastDepth network", why=f"no tensor {error}") from error
    except ValidationError as error:
        raise CheckpointError("not a FastDepth network", why=error.errors()[0]["msg"]) from error


def imagenet_mobilenet(shapes: Shapes) -> Config | None:
    """A plain FastDepth around the encoder of the authors' ImageNet MobileNet (`model.{i}`, `fc`), or None."""
    if "model.0.0.weight" not in shapes or "model.13.3.weight" not in shapes:
        return None
    return Config(encoder_widths=_mobilenet_widths(shapes, "model.{}."), depthwise=True, skip="add")


def encoder_key(key: str) -> str | None:
    """Name in a FastDepth with skips of a tensor of the ImageNet MobileNet; None for its classifier."""
    found = re.match(r"^model\.(\d+)\.(.+)$", key)
    return f"conv{found[1]}.{found[2]}" if found else None


def _skip_network(shapes: Shapes) -> dict[str, Any]:
    depthwise = "decode_conv1.0.0.weight" in shapes
    first, last = ("0.0.weight", "1.0.weight") if depthwise else ("0.weight", "0.weight")
    widths = tuple(shapes[f"decode_conv{k}.{last}"][0] for k in range(1, 6))
    inputs = shapes[f"decode_conv3.{first}"][0 if depthwise else 1]
    return {
        "encoder": "mobilenet-v1",
        "encoder_widths": _mobilenet_widths(shapes, "conv{}."),
        "kernel": shapes[f"decode_conv1.{first}"][-1],
        "depthwise": depthwise,
        "decoder_widths": widths,
        "skip": "concat" if inputs > widths[1] else "add",
    }


def _mobilenet_widths(shapes: Shapes, layer: str) -> tuple[int, ...]:
    rest = (shapes[f"{layer.format(i)}3.weight"][0] for i in range(1, 14))
    return (shapes[f"{layer.format(0)}0.weight"][0], *rest)


def _resnet(shapes: Shapes) -> dict[str, Any]:
    bottleneck = "layer1.0.conv3.weight" in shapes
    name, last = ("resnet50", "conv3") if bottleneck else ("resnet18", "conv2")
    inner = ("conv1", "conv2") if bottleneck else ("conv1",)
    return {
        "encoder": name,
        "encoder_widths": (
            shapes["conv1.weight"][0],
            *(shapes[f"layer{n}.0.{last}.weight"][0] for n in range(1, 5)),
        ),
        "hidden_widths": tuple(
            shapes[f"layer{n}.{block}.{conv}.weight"][0]
            for n, count in enumerate(resnet.BLOCKS[name], start=1)
            for block in range(count)
            for conv in inner
        ),
        "bridge": shapes["conv2.weight"][0] if "conv2.weight" in shapes else 0,
    }


def _decoder(shapes: Shapes) -> dict[str, Any]:
    if "decoder.conv1.0.weight" in shapes and "decoder.conv6.0.weight" not in shapes:
        return {"upsampler": "shuffle", "kernel": shapes["decoder.conv1.0.weight"][-1]}
    first = next((key for key in _DECODERS if f"decoder.{key}" in shapes), None)
    if first is None:
        raise KeyError("decoder.conv1.0.weight")
    upsampler, depthwise, stage = _DECODERS[first]
    last = first.split(".", 1)[1] if not depthwise else "1.0.weight"
    output = 1 if upsampler == "deconv" and not depthwise else 0  # transposed convolutions store inputs first
    widths = tuple(shapes[f"decoder.{stage.format(k)}.{last}"][output] for k in range(1, 6))
    third = shapes[f"decoder.{first.replace('1.', '3.', 1)}"]
    inputs = third[0] if depthwise or upsampler == "deconv" else third[1]
    return {
        "upsampler": upsampler,
        "depthwise": depthwise,
        "kernel": shapes[f"decoder.{first}"][-1],
        "decoder_widths": widths,
        "skip": "concat" if inputs > widths[1] else "none",
    }
