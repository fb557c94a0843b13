"""Pseudo-labels: a folder of pictures and a folder of machine-made relative disparity, paired by stem."""

from __future__ import annotations

from pathlib import Path
from typing import ClassVar

import numpy as np

from leadline.data.dataset import Dataset, Problem, Sample
from leadline.depth import Depth, Kind
from leadline.errors import DataError
from leadline.image import read_depth_png, read_image, resize

PICTURES = (".jpg", ".jpeg", ".png", ".webp")


class Format(Dataset):
    """`pseudo:PICTURES,LABELS`: every LABELS/stem.png (8 or 16 bits, larger = nearer) labels PICTURES/stem.jpg.

    Each label has a scale and shift of its own, so only losses and protocols that forgive both may use it. A label of
    another size than its picture (teachers often store half size) is enlarged bilinearly.
    """

    format: ClassVar[str] = "pseudo"
    kind = Kind.RELATIVE_DISPARITY

    def __init__(self, pictures: Path, labels: Path) -> None:
        found = {path.stem: path for path in sorted(pictures.iterdir()) if path.suffix.lower() in PICTURES}
        stems = {path.stem: path for path in sorted(labels.glob("*.png"))}
        self.name = pictures.name
        self.source = f"{pictures} with labels of {labels}"
        self.pairs = [(name, found[name], stems[name]) for name in found if name in stems]
        self.alone = [name for name in found if name not in stems]
        if not self.pairs:
            raise DataError("no labelled pictures", where=pictures, why=f"no stem occurs in {labels} too")

    @classmethod
    def detect(cls, path: Path) -> bool:
        """Never: the two folders must be named."""
        return False

    @classmethod
    def open(cls, path: str, split: str | None) -> Format:
        """Open `PICTURES,LABELS`.

        Raises:
            DataError: a folder is missing, nothing pairs, or a split was asked for.
        """
        pictures, comma, labels = path.partition(",")
        if not comma:
            raise DataError("pseudo-labels need two folders", where=path, mend="write pseudo:PICTURES,LABELS")
        if split is not None:
            raise DataError("pseudo-labels have no splits", where=split)
        for folder in (pictures, labels):
            if not Path(folder).is_dir():
                raise DataError("no such folder", where=folder)
        return cls(Path(pictures), Path(labels))

    def __len__(self) -> int:
        return len(self.pairs)

    def names(self) -> list[str]:
        """Stems, in order."""
        return [name for name, _, _ in self.pairs]

    def problems(self) -> list[Problem]:
        """Pictures without a label."""
        return [Problem(name, "no label", "run the teacher on it", fatal=False) for name in self.alone]

    def __getitem__(self, index: int) -> Sample:
        name, picture, label = self.pairs[index]
        image = read_image(picture)
        raw = read_depth_png(label).astype(np.float32)
        values = np.asarray(resize(raw, image.shape[:2], "bilinear"), np.float32)
        return Sample(name, image, Depth(values, self.kind, source=str(label)))
