"""Between ROS messages and arrays, without importing ROS: messages are read by their fields and returned as fields."""

from __future__ import annotations

import sys
from array import array
from typing import Any

import numpy as np
from numpy.typing import NDArray

from leadline.depth import Intrinsics
from leadline.errors import DataError

CHANNELS = {"rgb8": 3, "bgr8": 3, "mono8": 1}
FLOAT32 = 7  # of sensor_msgs/PointField
FIELDS = (("x", 0), ("y", 4), ("z", 8), ("rgb", 12))  # of a point: names and offsets
POINT_STEP = 16


def picture_of(message: Any) -> NDArray[np.uint8]:
    """The picture of a sensor_msgs/Image as H x W x 3 uint8 RGB.

    Raises:
        DataError: another encoding than rgb8, bgr8 and mono8, or fewer bytes than its size needs.
    """
    channels = CHANNELS.get(message.encoding)
    if channels is None:
        mend = f"convert it to one of {', '.join(CHANNELS)} first, with image_proc for Bayer patterns"
        raise DataError("an encoding that is not read", where=message.encoding, mend=mend)
    height, width, step = message.height, message.width, message.step
    pixels = np.frombuffer(message.data, np.uint8)
    if min(height, width) < 1 or step < width * channels or pixels.size < step * height:
        why = f"{height} x {width} with {step} bytes a row, and {pixels.size} bytes in all"
        raise DataError("an image message that contradicts itself", why=why)
    rows = pixels[: step * height].reshape(height, step)[:, : width * channels]  # rows may be padded
    picture = rows.reshape(height, width, channels)
    if message.encoding == "bgr8":
        picture = picture[:, :, ::-1]
    return np.ascontiguousarray(np.broadcast_to(picture, (height, width, 3)))


def camera_of(info: Any, size: tuple[int, int], *, rectified: bool) -> Intrinsics | None:
    """The camera of a sensor_msgs/CameraInfo in pixels of a picture of (height, width) `size`; None if uncalibrated.

    ROS counts pixel centres from 0, Leadline from 0.5. The matrices belong to the full resolution: region of interest
    and binning are taken into account.

    Args:
        info: the message.
        size: of the picture that came with it.
        rectified: the picture is rectified, so that P holds and not K.

    Raises:
        DataError: the message belongs to a picture of another size.
    """
    k = info.k
    fx, fy, cx, cy = (info.p[0], info.p[5], info.p[2], info.p[6]) if rectified else (k[0], k[4], k[2], k[5])
    if fx == 0:
        return None
    along_x, along_y, roi = max(1, info.binning_x), max(1, info.binning_y), info.roi
    height, width = (roi.height or info.height) // along_y, (roi.width or info.width) // along_x
    if (height, width) != size:
        why = f"it is for {height} x {width} pixels, the image has {size[0]} x {size[1]}"
        raise DataError("camera_info of another image", why=why)
    full = Intrinsics(float(fx), float(fy), float(cx) + 0.5, float(cy) + 0.5)
    return full.cropped(roi.y_offset, roi.x_offset).resized(1 / along_y, 1 / along_x)


def distorted(info: Any) -> bool:
    """Whether the lens bends straight lines, by its coefficients."""
    return any(value != 0 for value in info.d)


def image_fields(values: NDArray[np.float32], valid: NDArray[np.bool_]) -> dict[str, Any]:
    """Fields of a sensor_msgs/Image in 32FC1 (REP 118: metres for depth, NaN where nothing is known).

    Args:
        values: H x W.
        valid: where they mean something, H x W.
    """
    height, width = values.shape
    filled = np.where(valid, values, np.float32(np.nan)).astype(np.float32)
    return {
        "height": height,
        "width": width,
        "encoding": "32FC1",
        "is_bigendian": int(sys.byteorder == "big"),
        "step": 4 * width,
        "data": _bytes(filled),
    }


def cloud_fields(cloud: NDArray[np.float32], picture: NDArray[np.uint8]) -> dict[str, Any]:
    """Fields of a sensor_msgs/PointCloud2, an unordered list of the known points with their colours.

    Args:
        cloud: H x W x 3 as `leadline.point_cloud.points` returns it (x right, y down, z forward: the optical frame).
        picture: H x W x 3 uint8 RGB.

    Returns:
        The fields, of which `fields` is a list of the fields of sensor_msgs/PointField.
    """
    seen = np.isfinite(cloud[:, :, 2])
    points = np.empty(int(seen.sum()), np.dtype([("xyz", "<f4", 3), ("rgb", "<u4")]))
    red, green, blue = picture[seen].astype(np.uint32).T
    points["xyz"], points["rgb"] = cloud[seen], red << 16 | green << 8 | blue
    return {
        "height": 1,
        "width": len(points),
        "fields": [{"name": name, "offset": at, "datatype": FLOAT32, "count": 1} for name, at in FIELDS],
        "is_bigendian": False,
        "point_step": POINT_STEP,
        "row_step": POINT_STEP * len(points),
        "data": _bytes(points),
        "is_dense": True,
    }


def _bytes(values: NDArray[Any]) -> array[int]:
    """As rclpy takes them without looking at each: any other sequence is checked byte by byte."""
    data = array("B")
    data.frombytes(values.tobytes())
    return data
