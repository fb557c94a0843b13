"""Start the node: `ros2 launch leadline_ros depth.launch.py image:=/camera/image_raw info:=/camera/camera_info`."""

from launch import LaunchDescription
from launch.actions import DeclareLaunchArgument
from launch.substitutions import LaunchConfiguration
from launch_ros.actions import Node
from launch_ros.parameter_descriptions import ParameterValue

ARGUMENTS = {"image": "image_raw", "info": "camera_info"}
PARAMETERS = {
    "model": ("leadline-s-indoor", str),
    "runtime": ("", str),
    "threads": ("1", int),
    "size": ("", str),
    "smooth": ("false", bool),
    "rectified": ("false", bool),
    "publish_points": ("false", bool),
}


def generate_launch_description() -> LaunchDescription:
    """The node with its topics and parameters as launch arguments."""
    defaults = {**ARGUMENTS, **{name: default for name, (default, _) in PARAMETERS.items()}}
    node = Node(
        package="leadline_ros",
        executable="depth_node",
        name="leadline",
        output="screen",
        remappings=[("image_raw", LaunchConfiguration("image")), ("camera_info", LaunchConfiguration("info"))],
        parameters=[
            {name: ParameterValue(LaunchConfiguration(name), value_type=kind) for name, (_, kind) in PARAMETERS.items()}
        ],
    )
    return LaunchDescription([*(DeclareLaunchArgument(name, default_value=defaults[name]) for name in defaults), node])
