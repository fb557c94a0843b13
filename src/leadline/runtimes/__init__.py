"""Runtimes: one adapter per engine, behind the contract of `base.py`."""
