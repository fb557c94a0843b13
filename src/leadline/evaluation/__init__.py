"""Accuracy by named protocols, with intervals; latency, memory and complexity beside it."""
