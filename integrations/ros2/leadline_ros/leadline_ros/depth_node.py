"""The node: the latest picture of a camera to its depth, and to points."""

from __future__ import annotations

import sys
from typing import Any

import rclpy
from rcl_interfaces.msg import ParameterDescriptor
from rclpy.executors import ExternalShutdownException
from rclpy.node import Node
from rclpy.qos import QoSProfile, ReliabilityPolicy
from sensor_msgs.msg import CameraInfo, Image, PointCloud2, PointField

from leadline.contract import Contract
from leadline.depth import Depth, Intrinsics, Kind
from leadline.errors import ConfigError, DataError, LeadlineError
from leadline.live.flow import opencv
from leadline.live.temporal import Smoother, Smoothing
from leadline.point_cloud import points
from leadline.predictor import Predictor, load
from leadline_ros.messages import camera_of, cloud_fields, distorted, image_fields, picture_of

DEFAULTS = {
    "model": "leadline-s-indoor",
    "runtime": "",
    "threads": 1,
    "size": "",
    "smooth": False,
    "rectified": False,
    "publish_points": False,
}


class DepthNode(Node):  # type: ignore[misc]  # ROS ships no types
    """Subscribes to `image_raw` and `camera_info`; publishes below its own name.

    Metric models publish `~/depth`, `~/camera_info` and, if wanted, `~/points`; the others `~/relative`, whose values
    mean what the parameter `kind` says.
    """

    def __init__(self) -> None:
        super().__init__("leadline")
        given = {name: self.declare_parameter(name, value).value for name, value in DEFAULTS.items()}
        self.rectified = given["rectified"]
        self.predictor: Predictor = load(
            given["model"], given["runtime"] or None, threads=given["threads"], size=_size(given["size"])
        )
        kind = self.contract.output.kind
        self.declare_parameter("kind", str(kind), ParameterDescriptor(read_only=True))
        self.metric = kind is Kind.METRIC_DEPTH
        if given["publish_points"] and not self.metric:
            raise ConfigError("no points in metres from", where=f"{kind} values", mend="use a metric model")
        if given["smooth"]:
            opencv()  # fails now, not at the first picture
        self.smoothing = Smoothing.causal() if given["smooth"] else None
        self.smoother: Smoother | None = None
        self.size: tuple[int, int] | None = None
        self.info: Any = None

        latest = QoSProfile(depth=1, reliability=ReliabilityPolicy.BEST_EFFORT)  # sensor data, but the last one only
        offered = QoSProfile(depth=1, reliability=ReliabilityPolicy.RELIABLE)  # both kinds of subscribers match it
        topic = "~/depth" if self.metric else "~/relative"
        self.depth_out = self.create_publisher(Image, topic, offered)
        self.info_out = self.create_publisher(CameraInfo, "~/camera_info", offered)
        self.points_out = None
        if given["publish_points"]:
            self.points_out = self.create_publisher(PointCloud2, "~/points", offered)
        self.create_subscription(CameraInfo, "camera_info", self.on_info, latest)
        self.create_subscription(Image, "image_raw", self.on_image, latest)
        unit = "metres" if self.metric else "no unit"
        self.get_logger().info(f"{self.contract.name}: {kind} ({unit}) on {topic}")

    @property
    def contract(self) -> Contract:
        """Of the model."""
        return self.predictor.contract

    def on_info(self, info: Any) -> None:
        """Keep the camera."""
        self.info = info

    def on_image(self, message: Any) -> None:
        """Publish the depth of one picture; a bad one is said and left out."""
        try:
            picture = picture_of(message)
            size = (picture.shape[0], picture.shape[1])
            camera = self._camera(size)
            values = self.predictor.session.run(self.contract.prepare(picture, self.predictor.size))
            if self.smoothing is not None:
                if self.smoother is None or size != self.size:
                    self.smoother, self.size = Smoother(self.contract.output.kind, self.smoothing), size
                values = self.smoother.push(picture, values.reshape(values.shape[-2:]))[-1]
            depth = self.contract.restore(values, size, intrinsics=camera, source="image_raw")
            self._publish(depth, picture, message.header)
        except LeadlineError as error:
            self.get_logger().error(str(error), throttle_duration_sec=5.0)

    def _camera(self, size: tuple[int, int]) -> Intrinsics | None:
        camera = None
        if self.info is not None:
            try:
                camera = camera_of(self.info, size, rectified=self.rectified)
            except DataError as error:
                self.get_logger().warning(str(error), throttle_duration_sec=5.0)
            if not self.rectified and distorted(self.info):
                why = "the lens is distorted: points towards the edges are off"
                self.get_logger().warning(f"{why}; take image_rect with rectified:=true", once=True)
        if camera is None:
            metres = "; metres are right only for a camera like that of training" if self.metric else ""
            self.get_logger().warning(f"no calibrated camera_info yet{metres}", once=True)
        return camera

    def _publish(self, depth: Depth, picture: Any, header: Any) -> None:
        self.depth_out.publish(Image(header=header, **image_fields(depth.values, depth.valid)))
        if depth.intrinsics is None:
            return
        self.info.header = header
        self.info_out.publish(self.info)
        if self.points_out is not None:
            fields = cloud_fields(points(depth), picture)
            fields["fields"] = [PointField(**each) for each in fields["fields"]]
            self.points_out.publish(PointCloud2(header=header, **fields))


def main(args: list[str] | None = None) -> int:
    """Run the node until it is stopped."""
    rclpy.init(args=args)
    try:
        node = DepthNode()
        rclpy.spin(node)
    except (KeyboardInterrupt, ExternalShutdownException):
        return 0
    except LeadlineError as error:
        print(f"error: {error}", file=sys.stderr)
        return error.exit_status
    finally:
        rclpy.try_shutdown()
    return 0


def _size(text: str) -> tuple[int, int] | None:
    if not text:
        return None
    try:
        height, width = (int(part) for part in text.split(","))
    except ValueError as error:
        raise ConfigError("not a size", where=f"size {text!r}", mend="write height,width as in 224,288") from error
    return height, width
