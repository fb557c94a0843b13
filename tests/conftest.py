"""Shared fixtures: real data where it is, and one torch thread."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from hypothesis import settings

os.environ.setdefault("OMP_NUM_THREADS", "1")
settings.register_profile("leadline", deadline=None)  # a busy machine is no fault of the code
settings.load_profile("leadline")


def _shared(part: str) -> Path:
    root = Path(os.environ.get("LEADLINE_SHARED", Path(__file__).parents[2] / "shared"))
    if not (root / part).is_dir():
        pytest.skip(f"no real data at {root / part}; set LEADLINE_SHARED to its folder")
    return root / part


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """Folder of the real data samples."""
    return _shared("data")


@pytest.fixture(scope="session")
def shared_weights() -> Path:
    """Folder of the reference weights."""
    return _shared("weights")


@pytest.fixture(scope="session", autouse=True)
def _one_thread() -> None:
    import torch

    torch.set_num_threads(1)
