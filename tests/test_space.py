"""Points, meshes and occupancy maps of scenes that are known in closed form: a wall at 4.02 m, a box before it."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

import numpy as np
import pytest
import yaml

from leadline.depth import Depth, Intrinsics, Kind
from leadline.errors import ConfigError, DataError, KindError
from leadline.mesh import mesh_bytes
from leadline.occupancy import FREE, OCCUPIED, UNKNOWN, Slice, map_files, occupancy
from leadline.point_cloud import pcd_bytes, ply_bytes
from leadline.saving import output_paths, save
from predicting import names, picture, predict, write_model

if TYPE_CHECKING:
    from pathlib import Path

HEIGHT, WIDTH = 64, 96
CAMERA = Intrinsics(48.0, 48.0, 48.0, 32.0)  # 90 degrees wide
WALL, BOX = 4.02, 2.02
COLUMNS = slice(40, 56)  # of the box


def scene(top: int = 0, kind: Kind = Kind.METRIC_DEPTH) -> Depth:
    """The box stands in the middle, from row `top` down."""
    z = np.full((HEIGHT, WIDTH), WALL, np.float32)
    z[top:, COLUMNS] = BOX
    return Depth(1 / z if kind.is_disparity else z, kind, CAMERA)


def colours() -> np.ndarray:
    rows, columns = np.mgrid[:HEIGHT, :WIDTH]
    return np.stack([rows, columns, rows + columns], axis=2).astype(np.uint8)


# ---------------------------------------------------------------- readers that know the formats only


def read_pcd(data: bytes) -> tuple[np.ndarray, np.ndarray]:
    header, body = data.split(b"DATA binary\n", 1)
    said = dict(line.split(" ", 1) for line in header.decode("ascii").splitlines() if not line.startswith("#"))
    assert (said["VERSION"], said["FIELDS"], said["SIZE"], said["COUNT"]) == ("0.7", "x y z rgb", "4 4 4 4", "1 1 1 1")
    assert list(said) == ["VERSION", "FIELDS", "SIZE", "TYPE", "COUNT", "WIDTH", "HEIGHT", "VIEWPOINT", "POINTS"]
    assert int(said["WIDTH"]) * int(said["HEIGHT"]) == int(said["POINTS"])
    assert len(body) == 16 * int(said["POINTS"])
    bits = np.frombuffer(body, "<u4").reshape(-1, 4)
    packed = bits[:, 3]
    return bits[:, :3].copy().view("<f4"), np.stack([packed >> 16 & 255, packed >> 8 & 255, packed & 255], axis=1)


def read_ply(data: bytes) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    header, body = data.split(b"end_header\n", 1)
    lines = [line for line in header.decode("ascii").splitlines() if not line.startswith("comment")]
    assert lines[:2] == ["ply", "format binary_little_endian 1.0"]
    vertices = int(lines[2].removeprefix("element vertex "))
    assert [line.split()[1] for line in lines[3:9]] == ["float"] * 3 + ["uchar"] * 3
    first = np.frombuffer(body[: 15 * vertices], np.dtype([("xyz", "<f4", 3), ("rgb", "u1", 3)]))
    rest = np.empty((0, 3), "<i4")
    if len(lines) > 9:
        faces = int(lines[9].removeprefix("element face "))
        assert lines[10:] == ["property list uchar int vertex_indices"]
        record = np.frombuffer(body[15 * vertices :], np.dtype([("n", "u1"), ("v", "<i4", 3)]))
        assert len(record) == faces
        assert (record["n"] == 3).all()
        rest = record["v"]
    else:
        assert len(body) == 15 * vertices
    return first["xyz"], first["rgb"], rest


# ---------------------------------------------------------------- points


@pytest.mark.parametrize("kind", [Kind.METRIC_DEPTH, Kind.SCALED_DISPARITY])
def test_pcd_holds_the_pinholes_points_with_their_colours(kind: Kind) -> None:
    depth = scene(kind=kind)
    depth.values[0, 0] = np.nan
    xyz, rgb = read_pcd(pcd_bytes(depth, colours()))
    assert len(xyz) == HEIGHT * WIDTH - 1
    for at, (row, column) in ((0, (0, 1)), (45 + WIDTH * 10 - 1, (10, 45)), (-1, (63, 95))):
        z = BOX if 40 <= column < 56 else WALL
        np.testing.assert_allclose(xyz[at], [(column - 47.5) / 48 * z, (row - 31.5) / 48 * z, z], rtol=1e-5)
        assert rgb[at].tolist() == [row, column, row + column]


def test_pcd_and_ply_hold_the_same() -> None:
    depth = scene(20)
    points, shades = read_pcd(pcd_bytes(depth, colours()))
    xyz, rgb, faces = read_ply(ply_bytes(depth, colours()))
    np.testing.assert_array_equal(points, xyz)
    np.testing.assert_array_equal(shades, rgb)
    assert len(faces) == 0


# ---------------------------------------------------------------- meshes


@pytest.mark.parametrize("kind", [Kind.METRIC_DEPTH, Kind.SCALED_DISPARITY])
def test_a_mesh_is_cut_at_the_boxs_silhouette(kind: Kind) -> None:
    xyz, rgb, faces = read_ply(mesh_bytes(scene(20, kind), colours()))
    z = xyz[faces][:, :, 2]
    np.testing.assert_allclose(z.max(axis=1), z.min(axis=1), rtol=1e-6)  # no triangle joins box and wall
    squares = (HEIGHT - 1) * (WIDTH - 1)
    cut = 2 * (HEIGHT - 20) + 16 - 1  # beside and above the box: the two corners count once each
    assert len(faces) == 2 * (squares - cut) + 2  # at each upper corner of the box, the wall keeps one half
    assert len(xyz) == HEIGHT * WIDTH
    assert rgb[-1].tolist() == [63, 95, 158]


def test_triangles_face_the_camera() -> None:
    xyz, _, faces = read_ply(mesh_bytes(scene(20), colours()))
    a, b, c = (xyz[faces[:, each]] for each in range(3))
    assert (np.einsum("ij,ij->i", np.cross(b - a, c - a), a) < 0).all()


def test_a_floor_ends_where_it_is_seen_too_obliquely() -> None:
    camera = Intrinsics(480.0, 480.0, 16.0, 0.0)
    below = np.arange(300)[:, None] + 0.5
    floor = Depth(np.repeat(1.5 * 480 / below, 32, axis=1).astype(np.float32), Kind.METRIC_DEPTH, camera)
    xyz, _, _ = read_ply(mesh_bytes(floor, np.zeros((300, 32, 3), np.uint8)))
    limit = 1.5 / np.cos(np.radians(85))  # 85 degrees from the normal of a floor 1.5 m below: 17.2 m away
    assert limit * 0.95 < np.linalg.norm(xyz, axis=1).max() < limit * 1.05


def test_holes_of_the_depth_are_holes_of_the_mesh() -> None:
    values = np.full((3, 3), 2.0, np.float32)
    values[1, 1] = 0
    depth = Depth(values, Kind.METRIC_DEPTH, Intrinsics(4, 4, 1.5, 1.5))
    xyz, _, faces = read_ply(mesh_bytes(depth, np.zeros((3, 3, 3), np.uint8)))
    assert (len(xyz), len(faces)) == (0, 0)


# ---------------------------------------------------------------- occupancy


def bearings(part: Slice) -> tuple[np.ndarray, np.ndarray]:
    """The column of pixels that looks at each cell's centre, and how far ahead it is."""
    ahead, across = part.shape
    z, x = np.meshgrid((np.arange(ahead) + 0.5), np.arange(across) + 0.5 - across / 2, indexing="ij")
    return x / z * CAMERA.fx + CAMERA.cx, z * part.cell


def test_the_wall_the_box_and_its_shadow() -> None:
    part = Slice(-0.5, 0.5, cell=0.05, reach=6.0)
    grid = occupancy(scene(), part)
    assert grid.shape == (120, 240)
    column, z = bearings(part)
    box, beside = (column > 41) & (column < 55), ((column > 1) & (column < 39)) | ((column > 57) & (column < 95))
    assert (grid[box & (z < 2.0)] == FREE).all()
    assert (grid[40][box[40]] == OCCUPIED).all()  # 2.00 to 2.05 m
    assert (grid[box & (z > 2.05)] == UNKNOWN).all()  # the shadow, the wall in it included
    assert (grid[beside & (z < 4.0)] == FREE).all()
    assert (grid[80][beside[80]] == OCCUPIED).all()  # 4.00 to 4.05 m, without gaps though points are 8 cm apart
    assert (grid[beside & (z > 4.05)] == UNKNOWN).all()
    assert (grid[(column < -1) | (column > 97)] == UNKNOWN).all()
    assert set(np.nonzero((grid == OCCUPIED).any(axis=1))[0]) == {40, 80}


def test_only_what_stands_in_the_slice_is_in_the_way() -> None:
    low_box = scene(top=42)  # its upper edge is 0.40 m below the camera
    middle = np.index_exp[:, 119:121]
    over = occupancy(low_box, Slice(-0.3, 0.5, reach=6.0))[middle]
    assert (over[1:80] == FREE).all()
    assert (over[80] == OCCUPIED).all()
    through = occupancy(low_box, Slice(-1.0, 0.5, reach=6.0))[middle]
    assert (through[40] == OCCUPIED).all()
    assert (through[41:80] == UNKNOWN).all()  # seen above the box only
    assert (through[80] == OCCUPIED).all()


def test_below_the_field_of_view_is_unknown() -> None:
    wall = Depth(np.full((HEIGHT, WIDTH), WALL, np.float32), Kind.METRIC_DEPTH, CAMERA)
    middle = occupancy(wall, Slice(-0.9, -0.6, reach=6.0))[:, 120]
    enters = 0.6 / (31.5 / 48)  # the lowest ray reaches 0.6 m below the camera 0.914 m ahead: row 18
    assert enters == pytest.approx(0.914, abs=1e-3)
    assert (middle[:18] == UNKNOWN).all()
    assert (middle[18:80] == FREE).all()
    assert middle[80] == OCCUPIED


def test_no_measurement_is_unknown_and_beyond_the_reach_is_no_hit() -> None:
    depth = scene()
    depth.values[:, :48] = 0
    near = Slice(reach=1.0)
    grid = occupancy(depth, near)
    column, _ = bearings(near)
    assert (grid[column < 47] == UNKNOWN).all()
    assert (grid[(column > 49) & (column < 95)] == FREE).all()


def test_the_map_is_what_map_server_reads() -> None:
    part = Slice(cell=0.1, reach=5.0)
    grid = np.full(part.shape, UNKNOWN, np.uint8)
    grid[0, 0], grid[-1, -1] = OCCUPIED, FREE
    described, image = map_files(grid, part, 'a "b"_map.pgm')
    said = yaml.safe_load(described)
    assert said["image"] == 'a "b"_map.pgm'
    assert (said["resolution"], said["origin"], said["negate"], said["mode"]) == (0.1, [-5.0, 0.0, 0.0], 0, "trinary")
    magic, size, top, pixels = image.split(b"\n", 3)
    assert (magic, size, top, len(pixels)) == (b"P5", b"100 50", b"255", 5000)
    share = (255 - np.frombuffer(pixels, np.uint8).astype(float).reshape(50, 100)) / 255
    told = np.where(share > said["occupied_thresh"], 100, np.where(share < said["free_thresh"], 0, -1))
    assert told[-1, 0] == 100  # the origin is the lower left cell: nearest, leftmost
    assert told[0, -1] == 0
    assert (told == -1).sum() == 4998


@pytest.mark.parametrize("kind", [Kind.SCALED_DISPARITY, Kind.RELATIVE_DEPTH, Kind.RELATIVE_DISPARITY])
def test_maps_need_metres(kind: Kind) -> None:
    with pytest.raises(KindError, match="no occupancy map from"):
        occupancy(scene(kind=kind), Slice())


def test_meshes_need_no_unknown_shift_and_a_camera() -> None:
    with pytest.raises(KindError, match="no mesh from 'relative_depth values'"):
        mesh_bytes(scene(kind=Kind.RELATIVE_DEPTH), colours())
    with pytest.raises(DataError, match="no camera"):
        mesh_bytes(Depth(scene().values, Kind.METRIC_DEPTH), colours())


@pytest.mark.parametrize(
    ("values", "text"),
    [
        ((0.5, -0.5, 0.05, 10), "the slice is empty"),
        ((float("nan"), 1, 0.05, 10), "the slice is empty"),
        ((0, 1, 0, 10), "impossible map"),
        ((0, 1, 2, 1), "impossible map"),
        ((0, 1, 0.001, 10), "too large"),
    ],
)
def test_impossible_slices(values: tuple[float, float, float, float], text: str) -> None:
    with pytest.raises(ConfigError, match=text):
        Slice(*values)


# ---------------------------------------------------------------- the command


def test_all_are_written_with_their_meaning(tmp_path: Path) -> None:
    formats = ("pcd", "mesh", "occupancy")
    files = save(scene(), tmp_path / "a", formats, image=colours(), part=Slice(cell=0.1, reach=6.0))
    assert {path.name for path in tmp_path.iterdir()} == {p.name for p in output_paths(tmp_path / "a", formats)}
    assert yaml.safe_load(files["occupancy"].read_text())["image"] == "a_map.pgm"
    notes = json.loads(files["side"].read_text())["files"]
    assert "assumed to be level" in notes["occupancy"]["heights"]
    assert notes["mesh"]["triangles"] == {"most_depth_ratio": 1.1, "most_degrees_from_normal": 85.0}


def test_predict_saves_them_and_says_what_the_map_assumes(tmp_path: Path) -> None:
    model = write_model(tmp_path / "model")
    where = ("--out", tmp_path / "out", "--fov", 60, "--slice=-1,0.25", "--cell", "0.1", "--reach", "4")
    result = predict(str(model), picture(tmp_path / "a.png"), *where, "--save", "pcd,mesh,occupancy")
    assert result.exit_code == 0, result.output
    assert names(tmp_path / "out") == {"a.pcd", "a_mesh.ply", "a_map.yaml", "a_map.pgm", "a.json"}
    assert "take the camera to be level; heights -1 to 0.25 m" in result.stderr
    pixels = (tmp_path / "out" / "a_map.pgm").read_bytes().split(b"\n", 3)[3]
    grid = np.frombuffer(pixels, np.uint8).reshape(40, 80)
    assert set(np.nonzero((grid == OCCUPIED).any(axis=1))[0]) <= {19, 20}  # 2 m ahead, from below


@pytest.mark.parametrize(
    ("kind", "arguments", "text"),
    [
        (Kind.SCALED_DISPARITY, ("--save", "occupancy", "--fov", "60"), "its scale is unknown"),
        (Kind.RELATIVE_DEPTH, ("--save", "mesh", "--fov", "60"), "no mesh from"),
        (Kind.RELATIVE_DISPARITY, ("--save", "pcd", "--fov", "60"), "no point cloud from"),
        (Kind.METRIC_DEPTH, ("--save", "occupancy"), "no camera for the occupancy map"),
        (Kind.METRIC_DEPTH, ("--save", "mesh"), "no camera for the mesh"),
        (Kind.METRIC_DEPTH, ("--cell", "0.1"), "only occupancy maps"),
        (Kind.METRIC_DEPTH, ("--save", "occupancy", "--slice", "1"), "not a slice"),
        (Kind.METRIC_DEPTH, ("--save", "occupancy", "--slice", "a,b"), "not a slice"),
        (Kind.METRIC_DEPTH, ("--save", "occupancy", "--slice", "1,2,3"), "not a slice"),
        (Kind.METRIC_DEPTH, ("--save", "occupancy", "--reach", "nan"), "impossible map"),
    ],
)
def test_refusals_are_one_line(tmp_path: Path, kind: Kind, arguments: tuple[str, ...], text: str) -> None:
    model = write_model(tmp_path / "model", kind)
    result = predict(str(model), picture(tmp_path / "a.png"), "--out", tmp_path / "out", *arguments)
    assert result.exit_code == 2, result.output
    assert text in result.stderr
    assert len([line for line in result.stderr.splitlines() if line.startswith("error")]) == 1
