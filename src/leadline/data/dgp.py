"""The JSON files of the DGP layout, as far as depth needs them (SPEC 9)."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, TypeVar

import numpy as np
from pydantic import BaseModel, Field, ValidationError

from leadline.errors import DataError

if TYPE_CHECKING:
    from pathlib import Path

    from numpy.typing import NDArray

Number = Annotated[float, Field(allow_inf_nan=False)]
Text = Annotated[str, Field(max_length=1000)]
Model = TypeVar("Model", bound=BaseModel)


class Quaternion(BaseModel):
    """A rotation."""

    qw: Number
    qx: Number
    qy: Number
    qz: Number


class Vector(BaseModel):
    """A place, metres."""

    x: Number
    y: Number
    z: Number


class Pose(BaseModel):
    """Where a sensor was."""

    rotation: Quaternion
    translation: Vector

    def matrix(self) -> NDArray[np.float64]:
        """Sensor to world, 4 x 4, metres."""
        q = self.rotation
        w, x, y, z = np.array([q.qw, q.qx, q.qy, q.qz]) / np.linalg.norm([q.qw, q.qx, q.qy, q.qz])
        out = np.eye(4)
        out[:3, :3] = [
            [1 - 2 * (y * y + z * z), 2 * (x * y - w * z), 2 * (x * z + w * y)],
            [2 * (x * y + w * z), 1 - 2 * (x * x + z * z), 2 * (y * z - w * x)],
            [2 * (x * z - w * y), 2 * (y * z + w * x), 1 - 2 * (x * x + y * y)],
        ]
        out[:3, 3] = self.translation.x, self.translation.y, self.translation.z
        return out


class DatumFile(BaseModel):
    """One picture or sweep."""

    filename: Text
    pose: Pose


class DatumContent(BaseModel):
    """A datum is a picture, or a sweep, or something that is not read here."""

    image: DatumFile | None = None
    point_cloud: DatumFile | None = None


class DatumId(BaseModel):
    """The sensor's name."""

    name: Text


class Datum(BaseModel):
    """What one sensor recorded."""

    id: DatumId
    key: Text
    datum: DatumContent


class SampleEntry(BaseModel):
    """What belongs together, by key."""

    calibration_key: Text
    datum_keys: list[Text]


class Scene(BaseModel):
    """scene_*.json."""

    samples: list[SampleEntry]
    data: list[Datum]


class SceneFiles(BaseModel):
    """The scenes of one split."""

    filenames: list[Text]


class Index(BaseModel):
    """The dataset json: scenes by split number."""

    scene_splits: dict[str, SceneFiles]


class Pinhole(BaseModel):
    """A camera, pixels."""

    fx: Number
    fy: Number
    cx: Number
    cy: Number
    skew: Number = 0.0


class SceneCalibration(BaseModel):
    """calibration/*.json: intrinsics by sensor name."""

    names: list[Text]
    intrinsics: list[Pinhole]


def parse(model: type[Model], path: Path) -> Model:
    """A JSON file as `model`.

    Raises:
        DataError: it cannot be read, or is not what DGP writes.
    """
    try:
        return model.model_validate_json(path.read_bytes())
    except OSError as error:
        raise DataError("cannot read", where=path, why=error.strerror or str(error)) from error
    except ValidationError as error:
        first = error.errors()[0]
        place = ".".join(str(part) for part in first["loc"])
        why = f"{place}: {first['msg']}" if place else first["msg"]
        raise DataError("damaged JSON", where=path, why=why) from error
