"""A store of pseudo-labels: what a teacher says about each picture, one file per picture (SPEC.md section 9).

```
store.json                  the teacher and what its values mean
labels/<name>.png           the label of the picture <name>: 16-bit codes, its facts as a text chunk
```
A label is one file, so a killed run leaves whole labels or none, and processes that share a store cannot clobber each
other. 16-bit PNG with a scale and an offset per label instead of a compressed float16 array: a step of 1/65534 of the
label's range (or a millimetre) where float16 has 1/2048 of each value, 10 to 30 % smaller on disk (measured on
photographs), read by any viewer, and without an archive that could unpack to more than it says.
"""

from __future__ import annotations

import json
import struct
import zlib
from contextlib import suppress
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from leadline.depth import Depth, Kind
from leadline.errors import DataError, ImageReadError, KindError, OutputError
from leadline.image import read_depth_png, resize
from leadline.output import write_atomic
from leadline.png import SIGNATURE, png_bytes
from leadline.saving import to_codes

if TYPE_CHECKING:
    from numpy.typing import NDArray

INFO, LABELS, ENDING = "store.json", "labels", ".png"
_KEYWORD = b"leadline\0"
_HEADER = 8 + 25  # signature and IHDR; the facts are the next chunk
MOST_FACTS = 4096  # bytes
AGAIN = "delete it and run `leadline pseudo-label` again, which makes what is missing"


class StoreInfo(BaseModel):
    """Which teacher made the labels, and what they mean.

    Args:
        teacher: the model reference as it was given.
        teacher_name: what the model calls itself.
        teacher_sha256: of its manifest, file or tensors.
        kind: of every label.
        height: of the teacher's input, pixels; of a network that keeps proportions, its shorter side.
        width: likewise.
        resize: how pictures were brought to the input.
        align_corners: how labels are enlarged to their picture.
        dtype: of the stored codes.
        licence: of the teacher's weights; labels may fall under it.
        training_data: of the teacher.
        leadline: version that made the store.
    """

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

    schema_version: Literal[1] = 1
    teacher: str
    teacher_name: str
    teacher_sha256: str = Field(pattern="^[0-9a-f]{64}$")
    kind: Kind
    height: int
    width: int
    resize: str
    align_corners: bool = False
    dtype: Literal["uint16"] = "uint16"
    licence: str = "unknown"
    training_data: tuple[str, ...] = ()
    leadline: str = ""

    @property
    def identity(self) -> dict[str, Any]:
        """What must agree for labels to belong into one store."""
        return self.model_dump(mode="json", include={"teacher_sha256", "kind", "height", "width", "resize"})


class Facts(BaseModel):
    """What is known about one label besides its values.

    Args:
        picture: SHA-256 of the picture's pixels and size.
        picture_height: of the picture, pixels; the label may be smaller.
        picture_width: likewise.
        scale: value = scale * code + offset; code 0 is not valid.
        offset: likewise.
        minimum: of the valid values; None where there are none.
        median: likewise.
        maximum: likewise.
        zeros: number of valid values that are exactly 0 (a teacher's "infinitely far").
        invalid: number of values that are not valid.
        degenerate: whether the label is constant and says nothing.
    """

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

    picture: str = Field(pattern="^[0-9a-f]{64}$")
    picture_height: int = Field(ge=1)
    picture_width: int = Field(ge=1)
    scale: float
    offset: float
    minimum: float | None
    median: float | None
    maximum: float | None
    zeros: int
    invalid: int
    degenerate: bool


class LabelStore:
    """An existing store.

    Args:
        folder: where store.json is.

    Raises:
        DataError: there is none, or it is not valid.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = Path(folder)
        path = self.folder / INFO
        try:
            self.info = StoreInfo.model_validate_json(path.read_bytes())
        except FileNotFoundError as error:
            mend = f"make one: leadline pseudo-label TEACHER DATA --out {self.folder}"
            raise DataError("no label store", where=self.folder, why=f"no {INFO}", mend=mend) from error
        except OSError as error:
            raise DataError("cannot read", where=path, why=error.strerror or str(error)) from error
        except ValidationError as error:
            first = error.errors()[0]
            why = f"{'.'.join(str(part) for part in first['loc'])}: {first['msg']}"
            raise DataError("not a label store", where=path, why=why) from error

    @classmethod
    def create(cls, folder: Path, info: StoreInfo) -> LabelStore:
        """Make a store, or open the one that is there if its labels are of the same teacher, size and kind.

        Raises:
            OutputError: it is another teacher's, `folder` holds something else, or it cannot be written.
        """
        if is_store(folder):
            store = cls(folder)
            ours, theirs = info.identity, store.info.identity
            differing = [
                f"{key} {_short(theirs[key])}, now {_short(ours[key])}" for key in ours if ours[key] != theirs[key]
            ]
            if differing:
                why = f"its labels are {store.info.teacher_name}'s with {'; '.join(differing)}"
                raise OutputError("not the same store", where=folder, why=why, mend="choose another --out")
            return store
        if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
            raise OutputError("not a label store", where=folder, why="it holds something else", mend="choose another")
        write_atomic(folder / INFO, (info.model_dump_json(indent=2) + "\n").encode())
        return cls(folder)

    def __contains__(self, name: str) -> bool:
        return self.path(name).is_file()

    def path(self, name: str) -> Path:
        """File of a label.

        Raises:
            DataError: a name that is no relative path inside the store.
        """
        pure = PurePosixPath(name)
        if not name or pure.is_absolute() or ".." in pure.parts or "\0" in name or pure.name.startswith("."):
            raise DataError("not a name for a label", where=name, why="it must be a relative path without `..`")
        return self.folder / LABELS / f"{name}{ENDING}"

    def names(self) -> list[str]:
        """Names of all labels, sorted."""
        root = self.folder / LABELS
        files = (path for path in root.rglob(f"[!.]*{ENDING}") if path.is_file())
        return sorted(path.relative_to(root).as_posix().removesuffix(ENDING) for path in files)

    def intact(self) -> dict[str, Facts]:
        """The labels whose facts can be read, by name; a damaged one counts as none, so that it is made again."""
        found: dict[str, Facts] = {}
        for name in self.names():
            with suppress(ImageReadError):
                found[name] = self.facts(name)
        return found

    def pictures(self) -> dict[str, str]:
        """SHA-256 of every labelled picture and the first name that it has."""
        found: dict[str, str] = {}
        for name, facts in self.intact().items():
            found.setdefault(facts.picture, name)
        return found

    def facts(self, name: str) -> Facts:
        """What is recorded about a label, read without decoding it.

        Raises:
            ImageReadError: no label of a store, or a damaged one.
        """
        path = self.path(name)
        try:
            with path.open("rb") as file:
                head = file.read(_HEADER + 8)
                length = struct.unpack(">I", head[_HEADER : _HEADER + 4])[0] if len(head) == _HEADER + 8 else 0
                body = file.read(length + 4) if length <= MOST_FACTS else b""
            if not head.startswith(SIGNATURE) or head[-4:] != b"tEXt" or not body.startswith(_KEYWORD):
                raise ImageReadError("not a label of a store", where=path, why="it carries no facts")
            if zlib.crc32(body[:-4], zlib.crc32(b"tEXt")) != struct.unpack(">I", body[-4:])[0]:
                raise ImageReadError("damaged label", where=path, why="bad checksum of its facts", mend=AGAIN)
            return Facts.model_validate_json(body[len(_KEYWORD) : -4])
        except OSError as error:
            raise ImageReadError("cannot read", where=path, why=error.strerror or str(error)) from error
        except ValidationError as error:
            raise ImageReadError("damaged label", where=path, why=error.errors()[0]["msg"], mend=AGAIN) from error

    def get(self, name: str, size: tuple[int, int] | None = None) -> Depth | None:
        """The label of a picture, in the store's kind; None where there is none.

        Args:
            name: of the picture in its data set.
            size: (height, width) wanted, pixels; the picture's where absent. Enlarged bilinearly, or to the nearest
                value where some are not valid.

        Raises:
            ImageReadError: the file is damaged.
        """
        if name not in self:
            return None
        path, facts, kind = self.path(name), self.facts(name), self.info.kind
        codes = read_depth_png(path)
        if codes.dtype != np.uint16:
            raise ImageReadError("damaged label", where=path, why="it has 8 bits", mend=AGAIN)
        values = (codes * facts.scale + facts.offset).astype(np.float32)
        values[codes == 0] = np.nan if kind is Kind.RELATIVE_DISPARITY else 0.0
        depth = Depth(values, kind, source=str(path))
        size = size or (facts.picture_height, facts.picture_width)
        if depth.shape == size:
            return depth
        if not depth.valid.all():
            return Depth(np.ascontiguousarray(resize(values, size, "nearest")), kind, source=str(path))
        larger = resize(values, size, "bilinear", align_corners=self.info.align_corners)
        return Depth(np.asarray(larger, np.float32), kind, source=str(path))

    def put(self, name: str, depth: Depth, *, picture: str, size: tuple[int, int]) -> Facts:
        """Write a label, completely or not at all; an older one of that name is replaced.

        Args:
            name: of the picture in its data set.
            depth: the label, at the picture's size or smaller.
            picture: SHA-256 of the picture (`picture_hash`).
            size: (height, width) of the picture, pixels.

        Raises:
            KindError: another kind than the store's.
            OutputError: it cannot be written.
        """
        if depth.kind is not self.info.kind:
            raise KindError("a label of another kind", where=name, why=f"{depth.kind}, the store {self.info.kind}")
        codes, scale, offset = to_codes(depth)
        valid = depth.values[depth.valid]
        facts = Facts(
            picture=picture,
            picture_height=size[0],
            picture_width=size[1],
            scale=scale,
            offset=offset,
            minimum=float(valid.min()) if valid.size else None,
            median=float(np.median(valid)) if valid.size else None,
            maximum=float(valid.max()) if valid.size else None,
            zeros=int((valid == 0).sum()),
            invalid=depth.values.size - valid.size,
            degenerate=depth.is_degenerate,
        )
        write_atomic(self.path(name), _with_facts(png_bytes(codes), facts))
        return facts

    def repeat(self, name: str, first: str) -> None:
        """Give the label of `first` to `name`, an equal picture.

        Raises:
            OutputError: it cannot be written.
        """
        write_atomic(self.path(name), self.path(first).read_bytes())


def _short(value: Any) -> Any:
    return f"{value[:12]}..." if isinstance(value, str) and len(value) == 64 else value


def is_store(folder: Path) -> bool:
    """True where a folder is a label store."""
    return (folder / INFO).is_file()


def picture_hash(image: NDArray[np.uint8]) -> str:
    """SHA-256 of a picture's size and pixels (H x W x 3 uint8): equal pictures have equal hashes, whatever the file."""
    import hashlib

    digest = hashlib.sha256(json.dumps(image.shape).encode())
    digest.update(np.ascontiguousarray(image).data)
    return digest.hexdigest()


def _with_facts(png: bytes, facts: Facts) -> bytes:
    body = b"tEXt" + _KEYWORD + facts.model_dump_json().encode("ascii")
    chunk = struct.pack(">I", len(body) - 4) + body + struct.pack(">I", zlib.crc32(body))
    return png[:_HEADER] + chunk + png[_HEADER:]
