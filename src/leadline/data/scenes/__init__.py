"""Procedural rooms and streets: layout, rasteriser, textures and shading, numpy only."""
