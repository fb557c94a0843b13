"""How colcon builds the package; `leadline` itself comes from pip."""

from setuptools import setup

NAME = "leadline_ros"

setup(
    name=NAME,
    version="0.1.0",
    packages=[NAME],
    data_files=[
        ("share/ament_index/resource_index/packages", [f"resource/{NAME}"]),
        (f"share/{NAME}", ["package.xml"]),
        (f"share/{NAME}/launch", ["launch/depth.launch.py"]),
    ],
    install_requires=["setuptools"],
    zip_safe=True,
    maintainer="The Leadline authors",
    maintainer_email="leadline@example.com",
    description="Depth of a camera's pictures by a Leadline model, as depth images and points.",
    license="Apache-2.0",
    entry_points={"console_scripts": [f"depth_node = {NAME}.depth_node:main"]},
)
