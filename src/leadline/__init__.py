"""Leadline: take a monocular depth network from training to a measured, deployable file on your own hardware."""

__version__ = "0.1.0"
