"""Leadline: take a monocular depth network from training to a measured, deployable file on your own hardware.

Public names are loaded on first use, so that `import leadline` stays quick.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from leadline.contract import Contract
    from leadline.depth import Depth, Intrinsics, Kind
    from leadline.errors import LeadlineError
    from leadline.evaluation.evaluate import evaluate
    from leadline.predictor import Predictor, load
    from leadline.studies.optimize import optimize

__version__ = "0.1.0"

_HOMES = {
    "Contract": "leadline.contract",
    "Depth": "leadline.depth",
    "Intrinsics": "leadline.depth",
    "Kind": "leadline.depth",
    "LeadlineError": "leadline.errors",
    "Predictor": "leadline.predictor",
    "evaluate": "leadline.evaluation.evaluate",
    "load": "leadline.predictor",
    "optimize": "leadline.studies.optimize",
}

__all__ = [
    "Contract",
    "Depth",
    "Intrinsics",
    "Kind",
    "LeadlineError",
    "Predictor",
    "__version__",
    "evaluate",
    "load",
    "optimize",
]


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'leadline' has no attribute {name!r}")
    value = getattr(importlib.import_module(_HOMES[name]), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return __all__
