"""Parts of a batch, and what share of the whole each objective's term has in each part."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Sequence

    from leadline.training.batches import Batch, Clip
    from leadline.training.objectives import Term
    from leadline.training.team import Team


def cut(batch: Batch, count: int) -> list[Batch]:
    """`count` contiguous pieces of almost equal size; the batch itself where it is 1.

    Args:
        batch: at least `count` pictures.
        count: number of pieces, at least 1.
    """
    if count == 1:
        return [batch]
    number = len(batch.kinds)
    return [_piece(batch, k * number // count, (k + 1) * number // count) for k in range(count)]


def shares(objectives: Sequence[Term], pieces: Sequence[Batch], team: Team) -> list[list[float]]:
    """For each piece, each objective's share of the batch that all pieces of all processes make, 0 to 1.

    A joined objective sees a piece of every process at once, so its share is that of all of them.
    """
    counts = [[objective.count(piece) for objective in objectives] for piece in pieces]
    totals = team.total([value for row in counts for value in row])
    everyone = [totals[k : k + len(objectives)] for k in range(0, len(totals), len(objectives))]
    whole = [sum(column) for column in zip(*everyone, strict=True)]
    return [
        [
            (all_of_it if objective.joined else own) / total if total else 0.0
            for objective, own, all_of_it, total in zip(objectives, row, joined, whole, strict=True)
        ]
        for row, joined in zip(counts, everyone, strict=True)
    ]


def _piece(batch: Batch, start: int, stop: int) -> Batch:
    return replace(
        batch,
        image=batch.image[start:stop],
        target=batch.target[start:stop],
        valid=batch.valid[start:stop],
        kinds=batch.kinds[start:stop],
        names=batch.names[start:stop],
        clip=None if batch.clip is None else _clip_piece(batch.clip, start, stop),
    )


def _clip_piece(clip: Clip, start: int, stop: int) -> Clip | None:
    chosen = (clip.rows >= start) & (clip.rows < stop)
    if not bool(chosen.any()):
        return None
    return replace(
        clip,
        rows=clip.rows[chosen] - start,
        image=clip.image[chosen],
        sources=clip.sources[chosen],
        seen=clip.seen[chosen],
        intrinsics=clip.intrinsics[chosen],
        poses=clip.poses[chosen],
    )
