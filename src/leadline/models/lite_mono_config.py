"""What decides a Lite-Mono network: dilations, attention, bins and every channel count (SPEC.md sections 3 and 5)."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, model_validator

if TYPE_CHECKING:
    from typing import Self

Width = Annotated[int, Field(ge=1, le=8192)]
PerStage = tuple[Width, Width, Width]
DEFAULT_DILATIONS = ((1, 2, 3), (1, 2, 3), (1, 2, 3, 1, 2, 3, 2, 4, 6))  # for 192 x 640
WIDE_DILATIONS = ((1, 2, 5), (1, 2, 5), (1, 2, 5, 1, 2, 5, 2, 4, 10))  # for 320 x 1024
EXPANSION = 6
HEADS = 8


class Config(BaseModel):
    """Everything that decides the graph; a pruned network is the same architecture with other numbers.

    Args:
        widths: channels of the three stages; all blocks of a stage share them through the residual.
        dilations: per stage, one dilation per CDC block; their number decides the depth. Any plan fits any size; the
            published networks have one for 192 x 640 and a wider one for 320 x 1024.
        stem: outputs of the three convolutions of the stem. Empty: `widths[0]` each.
        hidden: per stage, channels between the two linear layers of each block, the LGFI block last. Empty: 6 x width.
        heads: per stage, heads of the cross-covariance attention.
        head_widths: per stage, channels of one head. Empty: width / heads.
        decoder_widths: outputs of the six decoder convolutions, two per level from 1/16 to 1/2. Empty: half the
            encoder's widths, twice each, coarsest first.
        attention: stages (1 to 3) whose output passes a spatial attention (SPEC.md 5.1).
        bins: `none` = a sigmoid of disparity; `fixed` and `adaptive` = a softmax over disparity bins (SPEC.md 5.3).
        bin_count: number of bins.
        bin_spacing: how fixed bins, and adaptive ones before training, lie in the disparity range: equal ratios or
            equal steps.
        bin_hidden: hidden channels of the layers that predict adaptive bins.
        min_depth: nearest depth that the disparity range allows, in the unit of the network's own scale.
        max_depth: farthest.
        drop_path: rate of the last block in training; earlier ones rise to it linearly.
        height: of the input that the network was made for, pixels.
        width: likewise.
    """

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

    widths: PerStage
    dilations: tuple[tuple[Width, ...], tuple[Width, ...], tuple[Width, ...]] = DEFAULT_DILATIONS
    stem: PerStage
    hidden: tuple[tuple[Width, ...], tuple[Width, ...], tuple[Width, ...]]
    heads: PerStage = (HEADS, HEADS, HEADS)
    head_widths: PerStage
    decoder_widths: tuple[Width, Width, Width, Width, Width, Width]
    attention: tuple[Literal[1, 2, 3], ...] = ()
    bins: Literal["none", "fixed", "adaptive"] = "none"
    bin_count: Annotated[int, Field(ge=2, le=1024)] = 64
    bin_spacing: Literal["ratio", "step"] = "ratio"
    bin_hidden: Width = 128
    min_depth: Annotated[float, Field(gt=0)] = 0.1
    max_depth: Annotated[float, Field(gt=0)] = 100.0
    drop_path: Annotated[float, Field(ge=0, lt=1)] = 0.2
    height: Annotated[int, Field(ge=32, le=4096, multiple_of=32)] = 192
    width: Annotated[int, Field(ge=32, le=4096, multiple_of=32)] = 640

    @model_validator(mode="before")
    @classmethod
    def _published_widths(cls, values: Any) -> Any:
        if not isinstance(values, dict) or not _is_widths(values.get("widths")):
            return values
        values, widths = dict(values), values["widths"]
        dilations = values.get("dilations", DEFAULT_DILATIONS)
        heads = values.get("heads", (HEADS, HEADS, HEADS))
        values["stem"] = values.get("stem") or (widths[0],) * 3
        values["decoder_widths"] = values.get("decoder_widths") or tuple(w // 2 for w in reversed(widths) for _ in "ab")
        if not values.get("hidden") and isinstance(dilations, list | tuple):
            values["hidden"] = tuple((EXPANSION * w,) * (len(d) + 1) for w, d in zip(widths, dilations, strict=False))
        if not values.get("head_widths") and _is_widths(heads):
            values["head_widths"] = tuple(w // h for w, h in zip(widths, heads, strict=True))
        return values

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        for stage, (hidden, dilations) in enumerate(zip(self.hidden, self.dilations, strict=True), start=1):
            if len(hidden) != len(dilations) + 1:
                why = f"hidden names {len(hidden)} blocks of stage {stage}, dilations ask for {len(dilations)} + 1"
                raise ValueError(why)
        if self.min_depth >= self.max_depth:
            raise ValueError("min_depth must be below max_depth")
        if list(self.attention) != sorted(set(self.attention)):
            raise ValueError("attention must name stages in ascending order, each once")
        return self

    @property
    def disparity_range(self) -> tuple[float, float]:
        """(smallest, largest) scaled disparity."""
        return 1 / self.max_depth, 1 / self.min_depth


def _is_widths(value: Any) -> bool:
    return isinstance(value, list | tuple) and len(value) == 3 and all(type(w) is int and w > 0 for w in value)


_SHORT_DILATIONS = ((1, 2, 3), (1, 2, 3), (1, 2, 3, 2, 4, 6))
_SHORT_WIDE_DILATIONS = ((1, 2, 5), (1, 2, 5), (1, 2, 5, 2, 4, 10))
_LARGE: dict[str, Any] = {"height": 320, "width": 1024}
_BASE: dict[str, Any] = {"widths": (48, 80, 128)}
_TINY: dict[str, Any] = {"widths": (32, 64, 128)}
_8M: dict[str, Any] = {"widths": (64, 128, 224)}

VARIANTS: dict[str, Config] = {
    "lite-mono": Config(**_BASE),
    "lite-mono-small": Config(**_BASE, dilations=_SHORT_DILATIONS),
    "lite-mono-tiny": Config(**_TINY, dilations=_SHORT_DILATIONS),
    "lite-mono-8m": Config(**_8M),
    "lite-mono-1024": Config(**_BASE, dilations=WIDE_DILATIONS, **_LARGE),
    "lite-mono-small-1024": Config(**_BASE, dilations=_SHORT_WIDE_DILATIONS, **_LARGE),
    "lite-mono-tiny-1024": Config(**_TINY, dilations=_SHORT_WIDE_DILATIONS, **_LARGE),
    "lite-mono-8m-1024": Config(**_8M, **_LARGE),
    "lite-mono-attention": Config(**_BASE, attention=(1,)),
    "lite-mono-fixed-bins": Config(**_BASE, bins="fixed"),
    "lite-mono-adaptive-bins": Config(**_BASE, bins="adaptive"),
}
