"""Compression: steps that make a network smaller or faster. A new one is one file and a name in the union."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field

from leadline.compression.base import Judged, Pictures, Place, Step, Target
from leadline.compression.finetune import FineTune
from leadline.compression.magnitude import PruneMagnitude
from leadline.compression.search import SearchChannels

__all__ = ["AnyStep", "Judged", "Pictures", "Place", "Step", "Target"]

AnyStep = Annotated[FineTune | PruneMagnitude | SearchChannels, Field(discriminator="step")]
