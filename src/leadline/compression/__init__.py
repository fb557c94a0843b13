"""Compression: steps that make a network smaller or faster. A new one is one file and a name in the union."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field

from leadline.compression.base import Judged, Pictures, Place, Step, Target
from leadline.compression.channels import PruneChannels
from leadline.compression.critic import DeepIoT
from leadline.compression.finetune import FineTune
from leadline.compression.magnitude import PruneMagnitude
from leadline.compression.netadapt import NetAdapt
from leadline.compression.pqk import PQK
from leadline.compression.qat import QuantisationAwareTraining
from leadline.compression.quantize import Quantize
from leadline.compression.recalibrate import Recalibrate
from leadline.compression.sampling import SearchConfigs
from leadline.compression.search import SearchChannels

__all__ = ["AnyStep", "Judged", "Pictures", "Place", "Step", "Target"]

AnyStep = Annotated[
    DeepIoT
    | FineTune
    | NetAdapt
    | PQK
    | PruneChannels
    | PruneMagnitude
    | QuantisationAwareTraining
    | Quantize
    | Recalibrate
    | SearchChannels
    | SearchConfigs,
    Field(discriminator="step"),
]
