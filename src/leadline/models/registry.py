"""The architectures that Leadline owns, and how one is built from plain configuration.

An architecture is one module of this package with five names:
`Config` (a frozen pydantic model, everything that decides the graph, channel counts included),
`build(config) -> nn.Module`, `contract(config) -> Contract`, `wiring(config) -> Wiring` (which channels belong
together), and `VARIANTS: dict[str, Config]`, its named sizes.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any, Protocol, cast

from leadline.errors import ConfigError, closest

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from pydantic import BaseModel
    from torch import nn

    from leadline.contract import Contract
    from leadline.models.wiring import Wiring

ARCHITECTURES = {
    "fastdepth": "leadline.models.fastdepth",
    "depth-anything-v2": "leadline.models.depth_anything",
    "lite-mono": "leadline.models.lite_mono",
}


class Architecture(Protocol):
    """What an architecture's module offers."""

    Config: type[BaseModel]
    VARIANTS: dict[str, BaseModel]

    def build(self, config: Any) -> nn.Module:
        """The network, N x 3 x H x W float32 (normalised by the contract) to N x 1 x H x W."""

    def contract(self, config: Any) -> Contract:
        """What this network expects and returns."""

    def wiring(self, config: Any) -> Wiring:
        """Which of this network's channels belong together."""


def architecture(name: str) -> Architecture:
    """The module of the architecture `name`.

    Raises:
        ConfigError: there is no such architecture.
    """
    if name not in ARCHITECTURES:
        raise ConfigError("unknown architecture", where=name, mend=closest(name, ARCHITECTURES))
    return cast("Architecture", importlib.import_module(ARCHITECTURES[name]))


def parse_config(name: str, values: dict[str, Any]) -> BaseModel:
    """Checked configuration of the architecture `name`.

    Raises:
        ConfigError: unknown keys or wrong values.
    """
    from pydantic import ValidationError

    kind = architecture(name).Config
    try:
        return kind.model_validate(values)
    except ValidationError as error:
        first = error.errors()[0]
        place = ".".join(str(part) for part in first["loc"])
        unknown = first["type"] == "extra_forbidden"
        why = "unknown key" if unknown else first["msg"]
        mend = closest(place, kind.model_fields) if unknown else ""
        raise ConfigError(f"bad {name} configuration", where=place, why=why, mend=mend) from error


def config_from(name: str, config: BaseModel, shapes: Mapping[str, Sequence[int]]) -> BaseModel:
    """The configuration of a network that was pruned: the channel counts are read off its tensors.

    Args:
        name: of the architecture.
        config: of the network before.
        shapes: of the tensors of the state dict now.

    Raises:
        ConfigError: no network of this architecture has these widths.
    """
    wiring = architecture(name).wiring(config)
    return resized(name, config, wiring, wiring.read(shapes))


def resized(name: str, config: BaseModel, wiring: Wiring, sizes: dict[str, Any]) -> BaseModel:
    """The configuration with other channel counts; the same one where they are the same.

    Raises:
        ConfigError: no network of this architecture has these widths.
    """
    if sizes == wiring.sizes:
        return config
    return parse_config(name, config.model_dump() | wiring.settled | sizes)


def variants() -> dict[str, tuple[str, BaseModel]]:
    """All named sizes: variant name to (architecture name, configuration)."""
    return {
        variant: (name, config) for name in ARCHITECTURES for variant, config in architecture(name).VARIANTS.items()
    }
