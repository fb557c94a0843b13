"""Which paths a data set reference names, and that nothing is written among them."""

from __future__ import annotations

import re
from pathlib import Path
from typing import TYPE_CHECKING

from leadline.data.dataset import FORMATS
from leadline.errors import OutputError

if TYPE_CHECKING:
    from collections.abc import Iterable

PSEUDO = "pseudo:"


def parts(reference: str) -> tuple[str, str, str]:
    """What stands before the path, the path, and what stands after: `kitti-raw:`, A, `?key=value#split`."""
    name, colon, rest = reference.partition(":")
    before, rest = (name + colon, rest) if colon and name in FORMATS else ("", reference)
    if before == "rendered:" or reference.partition("#")[0] == "rendered":
        return reference, "", ""
    if before == PSEUDO or Path(rest).exists():
        return before, rest, ""
    path = re.split("[?#]", rest, maxsplit=1)[0]
    return before, path, rest[len(path) :]


def paths(reference: str) -> list[str]:
    """All paths that a reference names: of `pseudo:` those of the pictures and of the labels."""
    before, path, _ = parts(reference)
    if before == PSEUDO:
        pictures, *labels = path.split(",")
        return [*paths(pictures), *labels]
    return [path] if path else []


def refuse_among_data(references: Iterable[str], out: Path, what: str) -> None:
    """Refuse to write `what` into data that is read.

    Raises:
        OutputError: `out` is one of the data's folders, or lies inside one.
    """
    place = out.resolve()
    for reference in references:
        for text in paths(reference):
            folder = Path(text).resolve()
            if folder.exists() and place.is_relative_to(folder):
                why = f"it {'is' if place == folder else 'lies inside'} the data {reference}"
                raise OutputError(f"will not write {what} into", where=out, why=why, mend="choose another --out")
