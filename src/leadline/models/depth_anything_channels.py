"""Which channels of Depth Anything V2 belong together: token width, heads and MLP of each block, the DPT head."""

from __future__ import annotations

from typing import TYPE_CHECKING

from leadline.models.wiring import Axis, Part, Wiring

if TYPE_CHECKING:
    from leadline.models.depth_anything import Config

PICTURE: Axis = (3,)
DEPTH: Axis = (1,)
UNUSED = 6  # residual unit that no output depends on: the first of the coarsest level


def wiring(config: Config) -> Wiring:
    """The axes of every tensor of `build(config)`."""
    w = Wiring(
        {
            "dim": config.dim,
            "heads": list(config.heads),
            "mlp": list(config.mlp),
            "out_channels": list(config.out_channels),
            "resized": list(config.resized_channels),
            "fused": list(config.fused_channels),
            "unit_channels": list(config.unit_widths),
            "head_channels": list(config.head_channels),
        }
    )
    tokens = _transformer(w, config)
    _head(w, tokens)
    return w


def _transformer(w: Wiring, config: Config) -> Axis:
    x = w.conv("pretrained.patch_embed.proj", PICTURE, w.space("dim"), bias=True)
    w.tensor("pretrained.cls_token", (1,), (1,), x)
    w.tensor("pretrained.pos_embed", (1,), (config.grid**2 + 1,), x)
    w.tensor("pretrained.mask_token", (1,), x)
    for index in range(config.depth):
        path = f"pretrained.blocks.{index}"
        w.norm(f"{path}.norm1", x, statistics=False)
        heads = w.heads("heads", index, width=config.head_width)
        w.conv(f"{path}.attn.qkv", x, (Part(heads, each=config.head_width, times=3),), bias=True)
        w.conv(f"{path}.attn.proj", (Part(heads, each=config.head_width),), x, bias=True)
        w.tensor(f"{path}.ls1.gamma", x)
        w.norm(f"{path}.norm2", x, statistics=False)
        hidden = w.conv(f"{path}.mlp.fc1", x, w.space("mlp", index), bias=True)
        w.conv(f"{path}.mlp.fc2", hidden, x, bias=True)
        w.tensor(f"{path}.ls2.gamma", x)
    w.norm("pretrained.norm", x, statistics=False)
    return x


def _head(w: Wiring, tokens: Axis) -> None:
    head, scratch = "depth_head", "depth_head.scratch"
    levels = []
    for j in range(4):
        y = w.conv(f"{head}.projects.{j}", tokens, w.space("out_channels", j), bias=True)
        if j == 2:
            levels.append(w.tied(y, "resized", j))
        else:
            resized = w.space("resized", j)
            levels.append(w.conv(f"{head}.resize_layers.{j}", y, resized, bias=True, transposed=j < 2))
    fused = [w.conv(f"{scratch}.layer{j + 1}_rn", level, w.space("fused", j)) for j, level in enumerate(levels)]
    for level in (3, 2, 1, 0):
        path = f"{scratch}.refinenet{level + 1}"
        for unit in (0, 1):
            number = 2 * level + unit
            inner = w.space("unit_channels", number) if number != UNUSED else (w.sizes["unit_channels"][UNUSED],)
            y = w.conv(f"{path}.resConfUnit{unit + 1}.conv1", fused[level], inner, bias=True)
            w.conv(f"{path}.resConfUnit{unit + 1}.conv2", y, fused[level], bias=True)
        outputs = fused[level - 1] if level else w.space("fused", 4)
        w.conv(f"{path}.out_conv", fused[level], outputs, bias=True)
    wide = w.conv(f"{scratch}.output_conv1", outputs, w.space("head_channels", 0), bias=True)
    narrow = w.conv(f"{scratch}.output_conv2.0", wide, w.space("head_channels", 1), bias=True)
    w.conv(f"{scratch}.output_conv2.2", narrow, DEPTH, bias=True)
