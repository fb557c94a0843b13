"""Tiny data sets on disk, one per format, whose every depth is known."""

from __future__ import annotations

import json
import struct
import zlib
from fractions import Fraction
from pathlib import Path

import h5py
import numpy as np
from PIL import Image


def picture(path: Path, height: int, width: int, seed: int = 0) -> np.ndarray:
    path.parent.mkdir(parents=True, exist_ok=True)
    pixels = np.random.default_rng(seed).integers(0, 256, (height, width, 3), np.uint8)
    Image.fromarray(pixels).save(path)
    return pixels


def png16(path: Path, values: np.ndarray) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(values.astype(np.uint16)).save(path)


def describe(root: Path, **changes: object) -> None:
    says = {"kind": "metric_depth", "unit": "m", "depth_scale": 1000, "max_depth": 10.0} | changes
    root.mkdir(parents=True, exist_ok=True)
    (root / "dataset.json").write_text(json.dumps({key: value for key, value in says.items() if value != "absent"}))


def folder(root: Path, count: int = 3, **changes: object) -> Path:
    """Pictures of 12 x 16 and millimetres: 2000 + 100 * number everywhere, the first row not measured."""
    describe(root, width=16, height=12, intrinsics={"fx": 15.0, "fy": 14.0, "cx": 8.0, "cy": 6.0}, **changes)
    for number in range(count):
        picture(root / "images" / f"{number:03d}.png", 12, 16, number)
        depth = np.full((12, 16), 2000 + 100 * number)
        depth[0] = 0
        png16(root / "depth" / f"{number:03d}.png", depth)
    return root


def split_folder(root: Path) -> Path:
    """Two splits, rgb/ instead of images/."""
    describe(root, splits={"train": {"dir": "train"}, "test": {"dir": "test", "what": "a note"}})
    for split, stems in {"train": ["a", "b"], "test": ["c"]}.items():
        for number, stem in enumerate(stems):
            picture(root / split / "rgb" / f"{stem}.png", 8, 8, number)
            png16(root / split / "depth" / f"{stem}.png", np.full((8, 8), 3000))
    return root


def pictures(root: Path) -> Path:
    """Pictures alone, one of them in a folder below."""
    picture(root / "a.png", 8, 9)
    picture(root / "below" / "a.png", 10, 8)
    picture(root / "below" / "b c ü.png", 10, 8)
    return root


def mat5(path: Path, compressed: bool = True, **vectors: list[int]) -> Path:
    """A MATLAB v5 file by the format's own document: 128 bytes of header, then one matrix per variable."""
    out = b"MATLAB 5.0 MAT-file, made by a test".ljust(124, b" ") + struct.pack("<H", 0x0100) + b"IM"
    for name, numbers in vectors.items():
        body = struct.pack("<IIII", 6, 8, 6, 0)  # flags: class double
        body += struct.pack("<IIii", 5, 8, len(numbers), 1)
        body += struct.pack("<II", 1, len(name)) + name.encode().ljust((len(name) + 7) // 8 * 8, b"\0")
        body += struct.pack("<II", 9, 8 * len(numbers)) + np.array(numbers, "<f8").tobytes()
        element = struct.pack("<II", 14, len(body)) + body
        if compressed:
            packed = zlib.compress(element)
            element = struct.pack("<II", 15, len(packed)) + packed
        out += element
    path.write_bytes(out)
    return path


def nyu(root: Path, splits: bool = True) -> Path:
    """Five pictures of 6 x 8; depth of picture i (from 0) is i + 1 + row/10 + column/100; raw has holes in row 0."""
    root.mkdir(parents=True, exist_ok=True)
    rows, columns = np.mgrid[:6, :8]
    depths = np.stack([1 + i + rows / 10 + columns / 100 for i in range(5)]).astype(np.float32)
    raw = depths.copy()
    raw[:, 0] = 0
    images = np.random.default_rng(5).integers(0, 256, (5, 6, 8, 3), np.uint8)
    with h5py.File(root / "nyu_depth_v2_labeled.mat", "w") as file:
        file["images"] = images.transpose(0, 3, 2, 1)
        file["depths"] = depths.transpose(0, 2, 1)
        file["rawDepths"] = raw.transpose(0, 2, 1)
    if splits:
        mat5(root / "splits.mat", trainNdxs=[2, 3, 5], testNdxs=[1, 4])
    return root


def fastdepth(root: Path) -> Path:
    for name in ("train/room/00001", "train/room/00002", "train/room/00201", "train/room/00401", "val/official/00001"):
        path = root / f"{name}.h5"
        path.parent.mkdir(parents=True, exist_ok=True)
        with h5py.File(path, "w") as file:
            file["rgb"] = np.random.default_rng(1).integers(0, 256, (3, 6, 8), np.uint8)
            depth = np.full((6, 8), 2.5, np.float32)
            depth[0, :3] = (0, np.nan, -1)
            file["depth"] = depth
    return root


# A lidar that looks along x with y to the left and z up; the camera looks along z with x to the right and y down.
AXES = "0 -1 0 0 0 -1 1 0 0"
P = "10 0 12 0 0 10 4 0 0 0 1 0"
HEIGHT, WIDTH = 8, 24
# x, y, z in the lidar's frame -> column 12 - 10 y/x, row 4 - 10 z/x
POINTS = [(10.0, 0.0, 0.0), (20.0, 0.0, 0.0), (5.0, 1.0, -0.5), (-5.0, 0.0, 0.0), (4.0, 4.0, 0.0), (8.0, -8.0, 0.0)]
# (row, column) -> depth; two points share (4, 12), one lies behind, one at column 22, one at column 2
PROJECTED = {(4, 12): 10.0, (5, 10): 5.0, (4, 2): 4.0, (4, 22): 8.0}


def sweep(path: Path, points: list[tuple[float, float, float]] = POINTS) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    np.array([(*point, 0.5) for point in points], "<f4").tofile(path)


def kitti_calibration(date: Path) -> None:
    date.mkdir(parents=True, exist_ok=True)
    lines = ["calib_time: 09-Jan-2012 13:57:47", "R_rect_00: 1 0 0 0 1 0 0 0 1"]
    for camera in ("02", "03"):
        lines += [f"S_rect_{camera}: {WIDTH} {HEIGHT}", f"P_rect_{camera}: {P}"]
    (date / "calib_cam_to_cam.txt").write_text("\n".join(lines) + "\n")
    (date / "calib_velo_to_cam.txt").write_text(f"calib_time: 15-Mar-2012 11:37:16\nR: {AXES}\nT: 0 0 0\n")


def kitti(root: Path) -> Path:
    """Four frames with pictures of both cameras; sweeps of 0 and 2; improved depth (7.5 m) of 1 and 2, left only."""
    date = root / "2011_09_26"
    drive = date / "2011_09_26_drive_0009_sync"
    kitti_calibration(date)
    for frame in range(4):
        for camera in ("02", "03"):
            picture(drive / f"image_{camera}" / "data" / f"{frame:010d}.png", HEIGHT, WIDTH, frame)
    for frame in (0, 2):
        sweep(drive / "velodyne_points" / "data" / f"{frame:010d}.bin")
    for frame in (1, 2):
        values = np.zeros((HEIGHT, WIDTH))
        values[3, 5] = 7.5 * 256
        png16(drive / "proj_depth" / "groundtruth" / "image_02" / f"{frame:010d}.png", values)
    return root


def kitti_object(root: Path) -> Path:
    base = root / "training"
    (base / "calib").mkdir(parents=True)
    for name in ("000000", "000007"):
        picture(base / "image_2" / f"{name}.png", HEIGHT, WIDTH)
        sweep(base / "velodyne" / f"{name}.bin")
        text = f"P2: {P}\nR0_rect: 1 0 0 0 1 0 0 0 1\nTr_velo_to_cam: 0 -1 0 0 0 0 -1 0 1 0 0 0\n"
        (base / "calib" / f"{name}.txt").write_text(text)
    return root


LOOKING_AHEAD = {"qw": 0.5, "qx": -0.5, "qy": 0.5, "qz": -0.5}  # camera z -> world x, x -> -y, y -> -z
NOT_TURNED = {"qw": 1.0, "qx": 0.0, "qy": 0.0, "qz": 0.0}


def ddad(root: Path) -> Path:
    """One scene, two samples; the lidar stands at x = 100, the camera one metre ahead of it."""
    scene = root / "000150"
    data, samples = [], []
    for number in range(2):
        keys = [f"lidar{number}", f"camera{number}", f"other{number}"]
        samples.append({"calibration_key": "calib", "datum_keys": keys, "id": {"index": str(number)}})
        for key, sensor, at, turn in (
            (keys[0], "LIDAR", 100.0, NOT_TURNED),
            (keys[1], "CAMERA_01", 101.0, LOOKING_AHEAD),
            (keys[2], "CAMERA_05", 101.0, LOOKING_AHEAD),
        ):
            kind = "point_cloud" if sensor == "LIDAR" else "image"
            name = f"point_cloud/LIDAR/{number}.npz" if sensor == "LIDAR" else f"rgb/{sensor}/{number}.png"
            pose = {"rotation": turn, "translation": {"x": at, "y": -3.0, "z": 2.0}}
            data.append({"key": key, "id": {"name": sensor}, "datum": {kind: {"filename": name, "pose": pose}}})
        (scene / "point_cloud" / "LIDAR").mkdir(parents=True, exist_ok=True)
        points = np.array([(x + 1, y, z, 0.5) for x, y, z in POINTS])
        np.savez(scene / "point_cloud" / "LIDAR" / f"{number}.npz", data=points)
        picture(scene / "rgb" / "CAMERA_01" / f"{number}.png", HEIGHT, WIDTH)
        picture(scene / "rgb" / "CAMERA_05" / f"{number}.jpg", HEIGHT, WIDTH)
    (scene / "scene_ab.json").write_text(json.dumps({"name": "", "samples": samples, "data": data}))
    k = {"fx": 10.0, "fy": 10.0, "cx": 12.0, "cy": 4.0, "skew": 0.0}
    (scene / "calibration").mkdir()
    names = ["LIDAR", "CAMERA_01", "CAMERA_05"]
    zeros = dict.fromkeys(k, 0.0)
    (scene / "calibration" / "calib.json").write_text(json.dumps({"names": names, "intrinsics": [zeros, k, k]}))
    files = {"filenames": ["000150/scene_ab.json"]}
    (root / "ddad.json").write_text(json.dumps({"scene_splits": {"0": files, "1": files}}))
    return root


def shade(number: int) -> int:
    """Grey of the left half of frame `number` of `film`."""
    return 20 + 12 * (number % 16)


def film(path: Path, *, count: int = 8, codec: str = "mpeg4", rate: int = 10) -> Path:
    """Frames of 64 x 96: the left half in the frame's shade, the right black, the upper left corner red."""
    import av

    path.parent.mkdir(parents=True, exist_ok=True)
    with av.open(str(path), "w") as container:
        stream = container.add_stream(codec, rate=rate)
        stream.height, stream.width, stream.pix_fmt, stream.bit_rate = 64, 96, "yuv420p", 2_000_000
        for number in range(count):
            image = np.zeros((64, 96, 3), np.uint8)
            image[:, :48] = shade(number)
            image[:8, :8] = (255, 0, 0)
            for packet in stream.encode(av.VideoFrame.from_ndarray(image, format="rgb24")):
                container.mux(packet)
        for packet in stream.encode(None):
            container.mux(packet)
    return path


def changing_film(path: Path) -> Path:
    """Two raw MPEG-2 streams joined, of 64 x 96 and then of 128 x 192."""
    import av

    data = b""
    for factor in (1, 2):
        encoder = av.CodecContext.create("mpeg2video", "w")
        encoder.height, encoder.width, encoder.pix_fmt = 64 * factor, 96 * factor, "yuv420p"
        encoder.framerate, encoder.time_base = Fraction(25), Fraction(1, 25)
        for number in range(5):
            image = np.full((64 * factor, 96 * factor, 3), shade(number), np.uint8)
            frame = av.VideoFrame.from_ndarray(image, format="rgb24")
            frame.pts = number
            data += b"".join(bytes(packet) for packet in encoder.encode(frame))
        data += b"".join(bytes(packet) for packet in encoder.encode(None))
    path.write_bytes(data)
    return path
