"""Losses between the features of two networks."""

from __future__ import annotations

from typing import TYPE_CHECKING

from torch.nn import functional as F

from leadline.losses.regression import masked_mean

if TYPE_CHECKING:
    from torch import Tensor


def feature_alignment(features: Tensor, teacher: Tensor, margin: float = 0.85) -> Tensor:
    """Mean of 1 - cosine between the two vectors of each place, over places that do not agree well enough yet.

    The margin leaves the student free within a cone around the teacher's feature: a teacher of semantics gives the
    parts of an object one feature, depth does not (Depth Anything V1; SPEC.md 6.4).

    Args:
        features: N x C x h x w.
        teacher: N x C x h x w; no gradient goes into it.
        margin: places with a larger cosine do not count; 1 counts all.
    """
    cosine = F.cosine_similarity(features, teacher.detach(), dim=1)
    return masked_mean(1 - cosine, cosine <= margin)
