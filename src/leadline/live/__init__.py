"""Depth of what moves: films, cameras, a server and its page."""
