"""Data sets: pictures with depth, their kinds, units, cameras and licences."""
