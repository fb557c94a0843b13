"""The DINOv2 vision transformer: patches to the feature maps that a dense head reads (SPEC.md 6.1)."""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal, Self

import torch
import torch.nn.functional as F
from pydantic import BaseModel, ConfigDict, Field, model_validator
from torch import Tensor, nn

if TYPE_CHECKING:
    from collections.abc import Sequence

PositionRule = Literal["scale_factor_offset", "size"]


class Dinov2Config(BaseModel):
    """Everything that decides the transformer's graph; heads and MLP widths stand per block, so pruning is plain data.

    Args:
        dim: channels of a token.
        heads: attention heads of each block; their number is the depth.
        head_width: channels of one head; 64 in every released network.
        mlp: hidden channels of each block's MLP.
        taken: the blocks whose outputs the head reads, counted from 0, ascending.
        patch: side of a patch, pixels.
        grid: side of the square of positions that were learned (518 / 14 = 37).
        positions: how positions are interpolated for another number of patches: `scale_factor_offset` by the factor
            (n + 0.1) / grid, as the authors' code does, `size` by n / grid, as transformers does (SPEC.md 6.1, 6.2).
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    dim: int = Field(ge=1)
    heads: tuple[int, ...] = Field(min_length=1)
    head_width: int = Field(default=64, ge=1)
    mlp: tuple[int, ...]
    taken: tuple[int, int, int, int]
    patch: int = Field(default=14, ge=1)
    grid: int = Field(default=37, ge=1)
    positions: PositionRule = "scale_factor_offset"

    @property
    def depth(self) -> int:
        """Number of blocks."""
        return len(self.heads)

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        if len(self.mlp) != self.depth:
            raise ValueError(f"heads names {self.depth} blocks and mlp {len(self.mlp)}")
        if min(self.heads) < 1 or min(self.mlp) < 1:
            raise ValueError("each block needs at least one head and one MLP channel")
        if list(self.taken) != sorted(set(self.taken)) or not 0 <= self.taken[0] <= self.taken[-1] < self.depth:
            raise ValueError(f"taken must be four ascending blocks from 0 to {self.depth - 1}")
        return self


class Dinov2(nn.Module):
    """DINOv2 without registers: pre-norm blocks with LayerScale, one learned square of positions.

    Args:
        config: the widths of every block.
    """

    def __init__(self, config: Dinov2Config) -> None:
        super().__init__()
        self.taken, self.grid, self.positions = config.taken, config.grid, config.positions
        self.cls_token = nn.Parameter(torch.zeros(1, 1, config.dim))
        self.pos_embed = nn.Parameter(torch.zeros(1, config.grid**2 + 1, config.dim))
        self.mask_token = nn.Parameter(torch.zeros(1, config.dim))  # unused here; part of the released weights
        self.patch_embed = PatchEmbedding(config.dim, config.patch)
        widths = zip(config.heads, config.mlp, strict=True)
        self.blocks = nn.ModuleList(Block(config.dim, heads, config.head_width, mlp) for heads, mlp in widths)
        self.norm = nn.LayerNorm(config.dim, eps=1e-6)
        self._initialise()

    def forward(self, image: Tensor) -> list[Tensor]:
        """The four taken feature maps.

        Args:
            image: N x 3 x H x W float32, normalised; H and W multiples of the patch.

        Returns:
            Four tensors N x dim x H/patch x W/patch, from the first taken block to the last.
        """
        patches = self.patch_embed(image)
        height, width = patches.shape[2], patches.shape[3]
        cls_position, positions = self.pos_embed[:, :1], self.position_map(height, width)
        cls_token = (self.cls_token + cls_position).expand(image.shape[0], -1, -1)
        tokens = torch.cat([cls_token, (patches + positions).flatten(2).transpose(1, 2)], dim=1)
        maps = []
        for index, block in enumerate(self.blocks):
            tokens = block(tokens)
            if index in self.taken:
                patch_tokens = self.norm(tokens)[:, 1:]
                maps.append(patch_tokens.transpose(1, 2).unflatten(2, (height, width)))
        return maps

    def position_map(self, height: int, width: int) -> Tensor:
        """The learned positions for height x width patches, 1 x dim x height x width: bicubic, no antialias.

        Two gathers of four neighbours instead of `F.interpolate`: with a symbolic size the exporters bake the latter's
        scale factor, while this leaves height and width open. The values are the same (tested).
        """
        learned = self.pos_embed[0, 1:].reshape(self.grid, self.grid, -1)
        rows, columns = (torch.arange(n, device=learned.device, dtype=torch.float32) for n in (height, width))
        count_y, count_x = rows.new_ones(1) * height, rows.new_ones(1) * width
        if self.positions == "scale_factor_offset":
            as_learned = (count_y == self.grid) & (count_x == self.grid)  # the authors leave that square untouched
            offset = torch.where(as_learned, 0.0, 0.1)
            count_y, count_x = count_y + offset, count_x + offset
        resized = _cubic_resample(learned, rows, self.grid / count_y, axis=0)
        resized = _cubic_resample(resized, columns, self.grid / count_x, axis=1)
        return resized.permute(2, 0, 1)[None]

    def _initialise(self) -> None:
        for parameter in (self.pos_embed, *(m.weight for m in self.modules() if isinstance(m, nn.Linear))):
            nn.init.trunc_normal_(parameter, std=0.02)
        for module in self.modules():
            if isinstance(module, nn.Linear):
                nn.init.zeros_(module.bias)
        nn.init.normal_(self.cls_token, std=1e-6)


class PatchEmbedding(nn.Module):
    """One token per patch: a convolution whose stride is its kernel."""

    def __init__(self, dim: int, patch: int) -> None:
        super().__init__()
        self.proj = nn.Conv2d(3, dim, patch, stride=patch)

    def forward(self, image: Tensor) -> Tensor:
        """N x 3 x H x W to N x dim x H/patch x W/patch."""
        patches: Tensor = self.proj(image)
        return patches


class Block(nn.Module):
    """x + LayerScale(attention(norm(x))), then the same with the MLP."""

    def __init__(self, dim: int, heads: int, head_width: int, mlp: int) -> None:
        super().__init__()
        self.norm1 = nn.LayerNorm(dim, eps=1e-6)
        self.attn = Attention(dim, heads, head_width)
        self.ls1 = LayerScale(dim)
        self.norm2 = nn.LayerNorm(dim, eps=1e-6)
        self.mlp = Mlp(dim, mlp)
        self.ls2 = LayerScale(dim)

    def forward(self, tokens: Tensor) -> Tensor:
        """N x T x dim to the same."""
        tokens = tokens + self.ls1(self.attn(self.norm1(tokens)))
        updated: Tensor = tokens + self.ls2(self.mlp(self.norm2(tokens)))
        return updated


class Attention(nn.Module):
    """Multi-head self-attention.

    `fused` True runs torch's fused kernel; False, and always inside `torch.export`, the plain MatMul-Softmax-MatMul
    that operation counters, quantisers and engines can see (RUNTIMES.md pitfall 8); see `set_fused_attention`.
    """

    def __init__(self, dim: int, heads: int, head_width: int) -> None:
        super().__init__()
        self.heads, self.head_width, self.fused = heads, head_width, True
        self.qkv = nn.Linear(dim, 3 * heads * head_width)
        self.proj = nn.Linear(heads * head_width, dim)

    def forward(self, tokens: Tensor) -> Tensor:
        """N x T x dim to the same."""
        q, k, v = self.qkv(tokens).unflatten(2, (3, self.heads, self.head_width)).permute(2, 0, 3, 1, 4).unbind(0)
        if self.fused and not torch.compiler.is_exporting():
            mixed = F.scaled_dot_product_attention(q, k, v)
        else:
            scores = (q * self.head_width**-0.5) @ k.transpose(-2, -1)
            mixed = scores.softmax(dim=-1) @ v
        projected: Tensor = self.proj(mixed.transpose(1, 2).flatten(2))
        return projected


class LayerScale(nn.Module):
    """One learned factor per channel, 1 at the start."""

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.gamma = nn.Parameter(torch.ones(dim))

    def forward(self, tokens: Tensor) -> Tensor:
        """N x T x dim to the same."""
        return tokens * self.gamma


class Mlp(nn.Module):
    """Linear, exact GELU, linear."""

    def __init__(self, dim: int, hidden: int) -> None:
        super().__init__()
        self.fc1 = nn.Linear(dim, hidden)
        self.fc2 = nn.Linear(hidden, dim)

    def forward(self, tokens: Tensor) -> Tensor:
        """N x T x dim to the same."""
        updated: Tensor = self.fc2(F.gelu(self.fc1(tokens)))
        return updated


def set_fused_attention(model: nn.Module, fused: bool) -> None:
    """Choose the fused kernel (fast) or the plain matrix products (countable) in every attention of `model`."""
    for module in model.modules():
        if isinstance(module, Attention):
            module.fused = fused


def _cubic_resample(values: Tensor, targets: Tensor, step: Tensor, axis: Literal[0, 1]) -> Tensor:
    """Keys' cubic (a = -0.75, edges replicated, half-pixel centres) along one axis of A x B x C.

    Args:
        values: the learned map.
        targets: 0, 1, 2 ... of the wanted positions, T.
        step: source positions per wanted position, 1.
        axis: 0 or 1.
    """
    last = values.shape[axis] - 1
    centre = (targets + 0.5) * step - 0.5
    left = centre.floor()
    fraction = centre - left
    resampled: Tensor | None = None
    for tap, weight in zip((-1, 0, 1, 2), _cubic_weights(fraction), strict=True):
        neighbour = values.index_select(axis, (left + tap).clamp(0, last).long())
        part = neighbour * weight.reshape((-1, 1, 1) if axis == 0 else (1, -1, 1))
        resampled = part if resampled is None else resampled + part
    assert resampled is not None
    return resampled


def _cubic_weights(t: Tensor, a: float = -0.75) -> Sequence[Tensor]:
    """Weights of the neighbours at -1, 0, 1 and 2 for a position `t` (0..1) right of neighbour 0."""

    def near(x: Tensor) -> Tensor:
        return ((a + 2) * x - (a + 3)) * x * x + 1

    def far(x: Tensor) -> Tensor:
        return ((a * x - 5 * a) * x + 8 * a) * x - 4 * a

    return far(t + 1), near(t), near(1 - t), far(2 - t)
