"""Which channels of a FastDepth network belong together, for every encoder, upsampler and kind of skip."""

from __future__ import annotations

from leadline.models import decoders, efficientnet_lite, mobilenet, mobilenet_v2, resnet
from leadline.models.fastdepth_config import STAGE_NAMES, Config
from leadline.models.wiring import Axis, Wiring, shuffled

PICTURE: Axis = (3,)
DEPTH: Axis = (1,)


def wiring(config: Config) -> Wiring:
    """The axes of every tensor of `build(config)`."""
    widths = config.shuffle_widths if config.upsampler == "shuffle" else config.decoder_widths
    w = Wiring(
        {
            "encoder_widths": list(config.encoder_widths),
            "hidden_widths": list(config.hidden_widths),
            "bridge": config.bridge,
            "decoder_widths": list(widths),
            **({"branch_widths": list(config.branch_widths or widths)} if config.upsampler == "upproj" else {}),
        }
    )
    quartered = 4 if config.upsampler == "shuffle" else 1
    features = _encoder(w, config, 1 if config.bridge else quartered)
    deepest = features[-1]
    if config.bridge:
        path = "conv2" if config.encoder.startswith("resnet") else "bridge"
        deepest = w.conv(path, deepest, w.space("bridge", bundle=quartered), bias=True)
    stem = "decode_" if config.flat else "decoder."
    if config.upsampler == "shuffle":
        _shuffle(w, stem, deepest)
    else:
        _decoder(w, config, stem, [*features[:-1], deepest])
    return w


def _encoder(w: Wiring, config: Config, bundle: int) -> list[Axis]:
    """Axes of the features at strides 2, 4, 8, 16, 32; the channels of the last go in bundles."""
    if config.encoder == "mobilenet-v1":
        return _mobilenet(w, "conv" if config.flat else "mobilenet.", bundle)
    if config.encoder.startswith("resnet"):
        return _resnet(w, config, bundle)
    if config.encoder == "mobilenet-v2":
        return _mobilenet_v2(w, bundle)
    return _efficientnet(w, config.encoder, bundle)


def _mobilenet(w: Wiring, stem: str, bundle: int) -> list[Axis]:
    x = w.conv(f"{stem}0.0", PICTURE, w.space("encoder_widths", 0), norm=f"{stem}0.1")
    features = []
    for index in range(1, 14):
        layer = f"{stem}{index}"
        x = w.depthwise(f"{layer}.0", x, f"{layer}.1")
        outputs = w.space("encoder_widths", index, bundle=bundle if index == 13 else 1)
        x = w.conv(f"{layer}.3", x, outputs, norm=f"{layer}.4")
        if index in mobilenet.FEATURE_LAYERS:
            features.append(x)
    return features


def _mobilenet_v2(w: Wiring, bundle: int) -> list[Axis]:
    layers = "encoder.features"
    x = w.conv(f"{layers}.0.0", PICTURE, w.space("encoder_widths", 0), norm=f"{layers}.0.1")
    features, block, hidden = [], 0, 0
    for stage, repeats in enumerate(mobilenet_v2.REPEATS):
        outputs = w.space("encoder_widths", stage + 1, bundle=bundle if stage == 6 else 1)
        for _ in range(repeats):
            block += 1
            path, at = f"{layers}.{block}.conv", 0
            if stage:
                x = w.conv(f"{path}.0.0", x, w.space("hidden_widths", hidden), norm=f"{path}.0.1")
                hidden, at = hidden + 1, 1
            x = w.depthwise(f"{path}.{at}.0", x, f"{path}.{at}.1")
            x = w.conv(f"{path}.{at + 1}", x, outputs, norm=f"{path}.{at + 2}")
        if stage in mobilenet_v2.FEATURE_STAGES:
            features.append(x)
    return features


def _efficientnet(w: Wiring, name: str, bundle: int) -> list[Axis]:
    x = w.conv("encoder.conv_stem", PICTURE, w.space("encoder_widths", 0), norm="encoder.bn0")
    features, block, hidden = [], 0, 0
    repeats = efficientnet_lite.REPEATS[name]
    for stage, count in enumerate(repeats):
        outputs = w.space("encoder_widths", stage + 1, bundle=bundle if stage == len(repeats) - 1 else 1)
        for _ in range(count):
            path = f"encoder.blocks.{block}"
            block += 1
            if stage:
                x = w.conv(f"{path}.expand_conv", x, w.space("hidden_widths", hidden), norm=f"{path}.bn0")
                hidden += 1
            x = w.depthwise(f"{path}.depthwise_conv", x, f"{path}.bn1")
            x = w.conv(f"{path}.project_conv", x, outputs, norm=f"{path}.bn2")
        if stage in efficientnet_lite.feature_stages(name):
            features.append(x)
    return features


def _resnet(w: Wiring, config: Config, bundle: int) -> list[Axis]:
    x = w.conv("conv1", PICTURE, w.space("encoder_widths", 0), norm="bn1")
    features, hidden = [x], 0
    inner = 1 if config.encoder == "resnet18" else 2
    if inner == 1 and config.encoder_widths[0] != config.encoder_widths[1]:
        w.settled["stem_projection"] = True  # pruning may make the widths equal
    for layer, count in enumerate(resnet.BLOCKS[config.encoder], start=1):
        apart = config.stem_projection or config.encoder_widths[0] != config.encoder_widths[1]
        projects = layer > 1 or inner == 2 or apart
        free = {"bundle": bundle if layer == 4 else 1}
        outputs = w.space("encoder_widths", layer, **free) if projects else w.tied(x, "encoder_widths", layer)
        for index in range(count):
            path, y = f"layer{layer}.{index}", x
            for number in range(1, inner + 1):
                y = w.conv(f"{path}.conv{number}", y, w.space("hidden_widths", hidden), norm=f"{path}.bn{number}")
                hidden += 1
            w.conv(f"{path}.conv{inner + 1}", y, outputs, norm=f"{path}.bn{inner + 1}")
            if index == 0 and projects:
                w.conv(f"{path}.downsample.0", x, outputs, norm=f"{path}.downsample.1")
            x = outputs
        features.append(x)
    return features


def _decoder(w: Wiring, config: Config, stem: str, features: list[Axis]) -> None:
    stage_name, head_name = STAGE_NAMES[config.upsampler]
    y = features[-1]
    for k, stride in enumerate(decoders.STRIDES):
        path = f"{stem}{stage_name.format(k + 1)}"
        joined = config.skip != "none" and stride in config.skip_strides
        feature = features[stride.bit_length() - 2] if joined else ()
        tied = joined and config.skip == "add" and not config.lateral
        outputs = w.tied(feature, "decoder_widths", k) if tied else w.space("decoder_widths", k)
        y = _stage(w, config, path, y, outputs, k)
        if joined and config.lateral:
            w.conv(f"{stem}lateral.{stride}.0", feature, outputs, norm=f"{stem}lateral.{stride}.1")
        elif joined and config.skip == "concat":
            y = (*y, *feature)
    head, relu = f"{stem}{head_name}", config.head == "relu"
    w.conv(f"{head}.0", y, DEPTH, norm=f"{head}.1" if relu else None, bias=not relu)


def _stage(w: Wiring, config: Config, path: str, inputs: Axis, outputs: Axis, k: int) -> Axis:
    if config.upsampler == "upproj":
        hidden = w.space("branch_widths", k)
        y = w.conv(f"{path}.branch1.0", inputs, hidden, norm=f"{path}.branch1.1")
        w.conv(f"{path}.branch1.3", y, outputs, norm=f"{path}.branch1.4")
        return w.conv(f"{path}.branch2.0", inputs, outputs, norm=f"{path}.branch2.1")
    if config.upsampler == "upconv":
        return w.conv(f"{path}.1", inputs, outputs, norm=f"{path}.2")
    if config.depthwise:
        y = w.depthwise(f"{path}.0.0", inputs, f"{path}.0.1")
        return w.conv(f"{path}.1.0", y, outputs, norm=f"{path}.1.1")
    return w.conv(f"{path}.0", inputs, outputs, norm=f"{path}.1", transposed=config.upsampler == "deconv")


def _shuffle(w: Wiring, stem: str, y: Axis) -> None:
    for k in range(1, 5):
        path = f"{stem}conv{k}"
        outputs = w.space("decoder_widths", k - 1, bundle=4) if k < 4 else (4,)
        y = w.conv(f"{path}.0", shuffled(y), outputs, norm=f"{path}.1")
