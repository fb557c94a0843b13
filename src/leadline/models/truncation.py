"""A student's first weights from its teacher's: leading slices of every tensor, blocks picked evenly."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch

from leadline.errors import CheckpointError

if TYPE_CHECKING:
    from torch import Tensor, nn

_BLOCK = re.compile(r"^(.*\bblocks)\.(\d+)\.(.*)$")
_QKV = re.compile(r"\bqkv\.(weight|bias)$")  # three tensors, one after the other


@dataclass(frozen=True)
class Truncated:
    """What became of the student's tensors.

    Args:
        copied: tensors that were filled from the teacher.
        fresh: names of those that the teacher has nothing for, which keep their initialisation.
    """

    copied: int
    fresh: tuple[str, ...]


def truncate(student: nn.Module, teacher: nn.Module) -> Truncated:
    """Fill the student with the teacher's weights, in place: each tensor takes the leading slice along every axis.

    Of a row of equal blocks, block i of n takes the teacher's block (i + 1) N / n - 1 of N, rounded down: the last of
    each of n equal groups. Unequal blocks (those of stages) match by number where there are as many, and start fresh
    otherwise. A fused query-key-value layer is cut in each of its thirds. A student as large as its teacher becomes its
    copy.

    Args:
        student: a network whose tensors have the teacher's names.
        teacher: the network to cut; unchanged.

    Raises:
        CheckpointError: no tensor fits, as between two architectures.
    """
    source, target = teacher.state_dict(), student.state_dict()
    picks = _picks(target, source)
    fresh: list[str] = []
    for name, wanted in target.items():
        given = source.get(_teachers_name(name, picks))
        cut = None if given is None else _sliced(given, wanted, parts=3 if _QKV.search(name) else 1)
        if cut is None:
            fresh.append(name)
        else:
            target[name] = cut
    if len(fresh) == len(target):
        why = "no tensor of the teacher has the name and form of one of the student's"
        raise CheckpointError("cannot truncate", why=why, mend="choose a teacher of the student's architecture")
    student.load_state_dict(target)
    return Truncated(len(target) - len(fresh), tuple(fresh))


def _picks(student: dict[str, Tensor], teacher: dict[str, Tensor]) -> dict[tuple[str, int], int]:
    """(row of blocks, number in the student) to the number in the teacher, for rows of different length."""
    ours, theirs = _rows(student), _rows(teacher)
    picks = {}
    for row, forms in ours.items():
        given = theirs.get(row, [])
        if len(given) != len(forms):
            equal = all(form == given[0] for form in given)
            for number in range(len(forms)):
                picks[row, number] = (number + 1) * len(given) // len(forms) - 1 if equal else -1
    return picks


def _rows(state: dict[str, Tensor]) -> dict[str, list[dict[str, tuple[int, ...]]]]:
    """Each row of blocks: the shapes in every block by name."""
    rows: dict[str, dict[int, dict[str, tuple[int, ...]]]] = {}
    for name, value in state.items():
        if match := _BLOCK.match(name):
            rows.setdefault(match[1], {}).setdefault(int(match[2]), {})[match[3]] = tuple(value.shape)
    return {row: [blocks[number] for number in sorted(blocks)] for row, blocks in rows.items()}


def _teachers_name(name: str, picks: dict[tuple[str, int], int]) -> str:
    match = _BLOCK.match(name)
    if match is None or (match[1], int(match[2])) not in picks:
        return name
    return f"{match[1]}.{picks[match[1], int(match[2])]}.{match[3]}"


def _sliced(given: Tensor, wanted: Tensor, parts: int) -> Tensor | None:
    """The leading slice of `wanted`'s shape, in each of `parts` pieces of the first axis; None if it is larger."""
    if given.ndim != wanted.ndim or any(have < need for have, need in zip(given.shape, wanted.shape, strict=True)):
        return None
    if given.ndim == 0:
        return given.clone()
    height = wanted.shape[0] // parts
    inner = tuple(slice(size) for size in wanted.shape[1:])
    return torch.cat([piece[(slice(height), *inner)] for piece in given.chunk(parts)]).to(wanted.dtype)
