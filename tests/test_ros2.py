"""The ROS 2 package, against stand-ins of ROS: its messages' fields are those of their published definitions."""

from __future__ import annotations

import importlib
import sys
import xml.etree.ElementTree as ElementTree
from array import array
from dataclasses import dataclass, field
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np
import pytest

from leadline.contract import Camera, InputSpec
from leadline.depth import Intrinsics, Kind
from leadline.errors import DataError
from predicting import write_model

if TYPE_CHECKING:
    from collections.abc import Iterator

PACKAGE = Path(__file__).parents[1] / "integrations" / "ros2" / "leadline_ros"


# ---------------------------------------------------------------- the message definitions, as they are published


@dataclass(slots=True)
class Header:
    stamp: float = 0.0
    frame_id: str = ""


@dataclass(slots=True)
class Image:
    header: Header = field(default_factory=Header)
    height: int = 0
    width: int = 0
    encoding: str = ""
    is_bigendian: int = 0
    step: int = 0
    data: array[int] = field(default_factory=lambda: array("B"))


@dataclass(slots=True)
class RegionOfInterest:
    x_offset: int = 0
    y_offset: int = 0
    height: int = 0
    width: int = 0
    do_rectify: bool = False


@dataclass(slots=True)
class CameraInfo:
    header: Header = field(default_factory=Header)
    height: int = 0
    width: int = 0
    distortion_model: str = ""
    d: list[float] = field(default_factory=list)
    k: list[float] = field(default_factory=lambda: [0.0] * 9)
    r: list[float] = field(default_factory=lambda: [0.0] * 9)
    p: list[float] = field(default_factory=lambda: [0.0] * 12)
    binning_x: int = 0
    binning_y: int = 0
    roi: RegionOfInterest = field(default_factory=RegionOfInterest)


@dataclass(slots=True)
class PointField:
    name: str = ""
    offset: int = 0
    datatype: int = 0
    count: int = 0


@dataclass(slots=True)
class PointCloud2:
    header: Header = field(default_factory=Header)
    height: int = 0
    width: int = 0
    fields: list[PointField] = field(default_factory=list)
    is_bigendian: bool = False
    point_step: int = 0
    row_step: int = 0
    data: array[int] = field(default_factory=lambda: array("B"))
    is_dense: bool = False


# ---------------------------------------------------------------- what the node uses of rclpy


@dataclass
class QoSProfile:
    depth: int
    reliability: str


class ReliabilityPolicy:
    BEST_EFFORT, RELIABLE = "best effort", "reliable"


@dataclass
class Parameter:
    value: Any


class Logger:
    def __init__(self) -> None:
        self.said: list[tuple[str, str]] = []

    def info(self, text: str) -> None:
        self.said.append(("info", text))

    def warning(self, text: str, *, once: bool = False, throttle_duration_sec: float = 0.0) -> None:
        if not (once and ("warning", text) in self.said):
            self.said.append(("warning", text))

    def error(self, text: str, *, throttle_duration_sec: float = 0.0) -> None:
        self.said.append(("error", text))


class Publisher:
    def __init__(self) -> None:
        self.sent: list[Any] = []

    def publish(self, message: Any) -> None:
        self.sent.append(message)


class Node:
    given: ClassVar[dict[str, Any]] = {}  # as from the command line

    def __init__(self, name: str) -> None:
        self.name, self.log = name, Logger()
        self.parameters: dict[str, Any] = {}
        self.publishers: dict[str, tuple[type, Publisher, QoSProfile]] = {}
        self.subscriptions: dict[str, tuple[type, Any, QoSProfile]] = {}

    def declare_parameter(self, name: str, value: Any, descriptor: Any = None) -> Parameter:
        self.parameters[name] = self.given.get(name, value)
        assert type(self.parameters[name]) is type(value)
        return Parameter(self.parameters[name])

    def create_publisher(self, kind: type, topic: str, qos: QoSProfile) -> Publisher:
        self.publishers[topic] = (kind, Publisher(), qos)
        return self.publishers[topic][1]

    def create_subscription(self, kind: type, topic: str, callback: Any, qos: QoSProfile) -> None:
        self.subscriptions[topic] = (kind, callback, qos)

    def get_logger(self) -> Logger:
        return self.log


@pytest.fixture
def ros(monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    """The package's modules, imported among stand-ins."""
    stand_ins: dict[str, dict[str, Any]] = {
        "rclpy": {"init": lambda args=None: None, "spin": lambda node: None, "try_shutdown": lambda: None},
        "rclpy.node": {"Node": Node},
        "rclpy.qos": {"QoSProfile": QoSProfile, "ReliabilityPolicy": ReliabilityPolicy},
        "rclpy.executors": {"ExternalShutdownException": type("ExternalShutdownException", (Exception,), {})},
        "rcl_interfaces": {},
        "rcl_interfaces.msg": {"ParameterDescriptor": lambda read_only: {"read_only": read_only}},
        "sensor_msgs": {},
        "sensor_msgs.msg": {each.__name__: each for each in (CameraInfo, Image, PointCloud2, PointField)},
    }
    for name, content in stand_ins.items():
        module = ModuleType(name)
        vars(module).update(content)
        monkeypatch.setitem(sys.modules, name, module)
    monkeypatch.syspath_prepend(str(PACKAGE))
    yield importlib.import_module("leadline_ros.depth_node")
    for name in [each for each in sys.modules if each.startswith("leadline_ros")]:
        del sys.modules[name]


@pytest.fixture
def messages(ros: Any) -> Any:
    return sys.modules["leadline_ros.messages"]


def image(pixels: np.ndarray, encoding: str, padding: int = 0) -> Image:
    height, width = pixels.shape[:2]
    rows = np.pad(pixels.reshape(height, -1), ((0, 0), (0, padding)), constant_values=99)
    return Image(Header(5.0, "optical"), height, width, encoding, 0, rows.shape[1], array("B", rows.tobytes()))


def info(height: int = 12, width: int = 16, **more: Any) -> CameraInfo:
    k = [20.0, 0.0, 7.5, 0.0, 21.0, 5.5, 0.0, 0.0, 1.0]
    p = [30.0, 0.0, 6.5, 0.0, 0.0, 31.0, 4.5, 0.0, 0.0, 0.0, 1.0, 0.0]
    return CameraInfo(Header(1.0, "old"), height, width, "plumb_bob", k=k, p=p, **more)


# ---------------------------------------------------------------- messages


@pytest.mark.parametrize("padding", [0, 5])
def test_pictures_of_each_encoding(messages: Any, padding: int) -> None:
    rgb = np.random.default_rng(0).integers(0, 256, (4, 6, 3), dtype=np.uint8)
    np.testing.assert_array_equal(messages.picture_of(image(rgb, "rgb8", padding)), rgb)
    np.testing.assert_array_equal(messages.picture_of(image(rgb[:, :, ::-1], "bgr8", padding)), rgb)
    grey = messages.picture_of(image(rgb[:, :, 0], "mono8", padding))
    np.testing.assert_array_equal(grey, np.repeat(rgb[:, :, :1], 3, axis=2))


def test_pictures_that_are_not_read(messages: Any) -> None:
    with pytest.raises(DataError, match="bayer_rggb8"):
        messages.picture_of(image(np.zeros((4, 6), np.uint8), "bayer_rggb8"))
    short = image(np.zeros((4, 6, 3), np.uint8), "rgb8")
    short.height = 5
    with pytest.raises(DataError, match="contradicts itself"):
        messages.picture_of(short)


def test_the_camera_counts_pixels_from_the_corner(messages: Any) -> None:
    assert messages.camera_of(info(), (12, 16), rectified=False) == Intrinsics(20.0, 21.0, 8.0, 6.0)
    assert messages.camera_of(info(), (12, 16), rectified=True) == Intrinsics(30.0, 31.0, 7.0, 5.0)
    assert messages.camera_of(CameraInfo(height=12, width=16), (12, 16), rectified=False) is None
    with pytest.raises(DataError, match="12 x 16 pixels"):
        messages.camera_of(info(), (6, 8), rectified=False)


def test_binning_and_region_of_interest(messages: Any) -> None:
    binned = info(binning_x=2, binning_y=2)
    assert messages.camera_of(binned, (6, 8), rectified=False) == Intrinsics(10.0, 10.5, 4.0, 3.0)
    part = info(roi=RegionOfInterest(x_offset=2, y_offset=1, height=8, width=10))
    assert messages.camera_of(part, (8, 10), rectified=False) == Intrinsics(20.0, 21.0, 6.0, 5.0)


def test_depth_is_32fc1_with_nan_for_nothing(messages: Any) -> None:
    values = np.array([[1.5, 0.0, 3.0]], np.float32)
    sent = Image(**messages.image_fields(values, values > 0))
    assert (sent.height, sent.width, sent.encoding, sent.step) == (1, 3, "32FC1", 12)
    assert sent.is_bigendian == (sys.byteorder == "big")
    assert isinstance(sent.data, array)
    np.testing.assert_array_equal(np.frombuffer(sent.data, np.float32), [1.5, np.nan, 3.0])


def test_points_are_xyz_and_packed_colours(messages: Any) -> None:
    cloud = np.array([[[1, 2, 3], [np.nan] * 3, [4, 5, 6]]], np.float32)
    picture = np.array([[[255, 128, 1], [9, 9, 9], [0, 0, 2]]], np.uint8)
    fields = messages.cloud_fields(cloud, picture)
    sent = PointCloud2(**{**fields, "fields": [PointField(**each) for each in fields["fields"]]})
    assert (sent.height, sent.width, sent.point_step, sent.row_step, sent.is_dense) == (1, 2, 16, 32, True)
    assert [(each.name, each.offset, each.datatype, each.count) for each in sent.fields] == [
        ("x", 0, 7, 1),
        ("y", 4, 7, 1),
        ("z", 8, 7, 1),
        ("rgb", 12, 7, 1),
    ]
    assert sent.data.tobytes()[12:16] == bytes([1, 128, 255, 0])  # blue first: 0x00RRGGBB, little-endian
    first = np.frombuffer(sent.data, "<f4").reshape(2, 4)
    np.testing.assert_array_equal(first[:, :3], [[1, 2, 3], [4, 5, 6]])


# ---------------------------------------------------------------- the node


def started(
    ros: Any, monkeypatch: pytest.MonkeyPatch, folder: Path, kind: Kind = Kind.METRIC_DEPTH, **given: Any
) -> Any:
    """A node whose network says a tenth of the brightness: 2 metres for grey 51."""
    trained = Camera(fx_over_width=20 / 16, fy_over_height=21 / 12)
    spec = InputSpec(height=32, width=64, camera=trained)
    monkeypatch.setattr(Node, "given", {"model": str(write_model(folder, kind, spec=spec)), **given})
    return ros.DepthNode()


def grey() -> Image:
    return image(np.full((12, 16, 3), 51, np.uint8), "bgr8")


def test_a_metric_model_publishes_metres_camera_and_points(
    ros: Any, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    node = started(ros, monkeypatch, tmp_path, publish_points=True)
    assert set(node.publishers) == {"~/depth", "~/camera_info", "~/points"}
    for kind, _, qos in node.subscriptions.values():
        assert (kind in (Image, CameraInfo), qos) == (True, QoSProfile(1, "best effort"))
    node.subscriptions["camera_info"][1](info())
    node.subscriptions["image_raw"][1](grey())
    (depth,) = node.publishers["~/depth"][1].sent
    np.testing.assert_allclose(np.frombuffer(depth.data, np.float32), 2.0, rtol=1e-5)
    (camera,) = node.publishers["~/camera_info"][1].sent
    (cloud,) = node.publishers["~/points"][1].sent
    assert depth.header == camera.header == cloud.header == Header(5.0, "optical")
    points = np.frombuffer(cloud.data, "<f4").reshape(-1, 4)
    np.testing.assert_allclose(points[0, :3], [(0.5 - 8) / 20 * 2, (0.5 - 6) / 21 * 2, 2], rtol=1e-5)
    assert node.parameters["kind"] == "metric_depth"
    assert [text for level, text in node.log.said if level != "info"] == []


def test_metres_follow_the_focal_length(ros: Any, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    node = started(ros, monkeypatch, tmp_path)
    longer = info()
    longer.k = [40.0, 0.0, 7.5, 0.0, 42.0, 5.5, 0.0, 0.0, 1.0]
    node.on_info(longer)
    node.on_image(grey())
    assert "~/points" not in node.publishers
    np.testing.assert_allclose(np.frombuffer(node.publishers["~/depth"][1].sent[0].data, np.float32), 4.0, rtol=1e-5)


def test_without_a_camera_it_says_so_once(ros: Any, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    node = started(ros, monkeypatch, tmp_path, publish_points=True)
    node.on_image(grey())
    node.on_image(grey())
    assert len(node.publishers["~/depth"][1].sent) == 2
    assert node.publishers["~/points"][1].sent == node.publishers["~/camera_info"][1].sent == []
    (warning,) = [text for level, text in node.log.said if level == "warning"]
    assert "no calibrated camera_info" in warning


def test_a_distorted_lens_is_said(ros: Any, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    node = started(ros, monkeypatch, tmp_path)
    node.on_info(info(d=[0.1, 0.0, 0.0, 0.0, 0.0]))
    node.on_image(grey())
    assert any("image_rect" in text for level, text in node.log.said if level == "warning")


@pytest.mark.parametrize("kind", [Kind.RELATIVE_DEPTH, Kind.RELATIVE_DISPARITY, Kind.SCALED_DISPARITY])
def test_relative_values_are_another_topic(
    ros: Any, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, kind: Kind
) -> None:
    node = started(ros, monkeypatch, tmp_path, kind)
    node.on_info(info())
    node.on_image(grey())
    assert set(node.publishers) == {"~/relative", "~/camera_info"}
    assert len(node.publishers["~/relative"][1].sent) == 1
    assert node.parameters["kind"] == str(kind)
    assert any(str(kind) in text and "no unit" in text for level, text in node.log.said if level == "info")


def test_a_bad_picture_is_said_and_the_next_one_counts(
    ros: Any, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    node = started(ros, monkeypatch, tmp_path, smooth=True)
    node.on_image(image(np.zeros((12, 16), np.uint8), "16UC1"))
    assert [level for level, _ in node.log.said if level == "error"] == ["error"]
    node.on_image(grey())
    node.on_image(image(np.full((24, 32, 3), 51, np.uint8), "rgb8"))  # another size begins anew
    sent = node.publishers["~/depth"][1].sent
    assert [(each.height, each.width) for each in sent] == [(12, 16), (24, 32)]


def test_faults_at_the_start_are_one_line(
    ros: Any, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    relative = str(write_model(tmp_path, Kind.RELATIVE_DEPTH))
    for given, text in (
        ({"model": relative, "publish_points": True}, "no points in metres"),
        ({"model": "leadline-x"}, "leadline-x"),
        ({"model": relative, "size": "32x64"}, "not a size"),
    ):
        monkeypatch.setattr(Node, "given", given)
        assert ros.main() == 2
        said = capsys.readouterr().err
        assert text in said
        assert said.count("\n") == 1


# ---------------------------------------------------------------- the package


def test_the_packages_files_name_each_other() -> None:
    root = ElementTree.parse(PACKAGE / "package.xml").getroot()
    assert root.findtext("name") == PACKAGE.name
    assert root.findtext("export/build_type") == "ament_python"
    setup = (PACKAGE / "setup.py").read_text()
    assert f'"{root.findtext("version")}"' in setup
    assert (PACKAGE / "resource" / PACKAGE.name).is_file()
    assert (PACKAGE / "launch" / "depth.launch.py").is_file()


def test_the_launch_file_offers_every_parameter(ros: Any) -> None:
    code: dict[str, Any] = {}
    lines = (PACKAGE / "launch" / "depth.launch.py").read_text().split("\ndef ")[0].splitlines()
    exec("\n".join(line for line in lines if not line.startswith("from launch")), code)
    offered = {name: kind for name, (_, kind) in code["PARAMETERS"].items()}
    assert offered == {name: type(value) for name, value in ros.DEFAULTS.items()}
