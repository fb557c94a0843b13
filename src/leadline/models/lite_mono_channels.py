"""Which channels of a Lite-Mono network belong together: stages tied by residuals, block expansions, heads, decoder."""

from __future__ import annotations

from leadline.models.lite_mono_blocks import FREQUENCIES
from leadline.models.lite_mono_config import Config
from leadline.models.wiring import Axis, Part, Wiring

PICTURE: Axis = (3,)


def wiring(config: Config) -> Wiring:
    """The axes of every tensor of `build(config)`."""
    w = Wiring(
        {
            "widths": list(config.widths),
            "stem": list(config.stem),
            "hidden": [list(hidden) for hidden in config.hidden],
            "heads": list(config.heads),
            "decoder_widths": list(config.decoder_widths),
            **({"bin_hidden": config.bin_hidden} if config.bins == "adaptive" else {}),
        }
    )
    x = PICTURE
    for k in range(3):
        path = f"encoder.downsample_layers.0.{k}"
        x = w.conv(f"{path}.conv", x, w.space("stem", k), norm=f"{path}.bn_gelu.bn")
    features: list[Axis] = []
    layer, inputs = "encoder.stem2.0.conv", (*x, *PICTURE)
    for stage in range(3):
        if stage:
            layer, inputs = f"encoder.downsample_layers.{stage}.0.conv", (*features[-1], *features[-1], *PICTURE)
        features.append(w.conv(layer, inputs, w.space("widths", stage)))
        _stage(w, config, stage, features[-1])
        if stage + 1 in config.attention:
            w.norm(f"encoder.attention.{stage + 1}.bn", (1,))
            w.conv(f"encoder.attention.{stage + 1}.conv", (2,), (1,))
    _decoder(w, config, features)
    return w


def _stage(w: Wiring, config: Config, stage: int, x: Axis) -> None:
    blocks = len(config.hidden[stage])
    for block in range(blocks):
        path = f"encoder.stages.{stage}.{block}"
        if block < blocks - 1:
            w.depthwise(f"{path}.ddwconv.conv", x, f"{path}.bn1")
        else:
            _attention(w, config, stage, path, x)
        w.norm(f"{path}.norm", x, statistics=False)
        y = w.conv(f"{path}.pwconv1", x, w.space("hidden", stage, block), bias=True)
        w.conv(f"{path}.pwconv2", y, x, bias=True)
        w.tensor(f"{path}.gamma", x)


def _attention(w: Wiring, config: Config, stage: int, path: str, x: Axis) -> None:
    if stage == 0:
        w.conv(f"{path}.pos_embd.token_projection", (2 * FREQUENCIES,), x, bias=True)
    w.tensor(f"{path}.gamma_xca", x)
    w.norm(f"{path}.norm_xca", x, statistics=False)
    width = config.head_widths[stage]
    heads = w.heads("heads", stage, width=width)
    w.conv(f"{path}.xca.qkv", x, (Part(heads, each=width, times=3),), bias=True)
    w.tensor(f"{path}.xca.temperature", (Part(heads),))
    w.conv(f"{path}.xca.proj", (Part(heads, each=width),), x, bias=True)


def _decoder(w: Wiring, config: Config, features: list[Axis]) -> None:
    y, maps = features[2], []
    for level, skip in enumerate((features[1], features[0], ())):
        y = w.conv(_decoding(2 * level), y, w.space("decoder_widths", 2 * level), bias=True)
        y = w.conv(_decoding(2 * level + 1), (*y, *skip), w.space("decoder_widths", 2 * level + 1), bias=True)
        maps.append(y)
    for scale, y in enumerate(reversed(maps)):
        bins = config.bins == "fixed" or (config.bins == "adaptive" and scale == 0)
        w.conv(f"depth.decoder.{6 + scale}.conv", y, (config.bin_count if bins else 1,), bias=True)
    if config.bins == "adaptive":
        pooled = tuple(part for feature in features for part in feature)
        hidden = w.conv("depth.centres.layers.0", pooled, w.space("bin_hidden"), bias=True)
        w.conv("depth.centres.layers.2", hidden, (config.bin_count,), bias=True)


def _decoding(layer: int) -> str:
    return f"depth.decoder.{layer}.conv.conv"
