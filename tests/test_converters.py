"""Engines that convert a PyTorch network by themselves (LiteRT, ExecuTorch): what they quantise, refuse and print."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from converters import STATIC, error, opened, with_file
from leadline.errors import BundleError, ConfigError
from leadline.models.quantization import Channels, Quantization
from leadline.runtimes import execu_torch, lite_rt
from leadline.runtimes.base import SessionOptions, runtime
from leadline.runtimes.export import export_step
from tiny_models import cnn, exported, picture

FILES = {"litert": lite_rt.FILE, "executorch": execu_torch.FILE}
REFUSED: dict[str, Any] = {
    "method": "entropy",
    "symmetric": True,
    "equalise": True,
    "bias_correction": True,
    "smooth": 0.5,
    "ranges": {"a": (0.0, 1.0)},
}


@pytest.fixture(params=list(FILES))
def engine(request: pytest.FixtureRequest) -> str:
    name: str = request.param
    if not runtime(name).availability().available:
        pytest.skip(f"{name} is not installed: pip install leadline[{name}]")
    return name


def test_static_int8_covers_the_network_but_the_head(engine: str) -> None:
    """256 levels of depth would show as steps."""
    session = opened(engine, "cnn", "int8-static")
    assert session.precision_ran == "int8 (40 of 41 layers)"
    assert error(engine, "cnn", "int8-static") < 0.2
    assert len(np.unique(session.run(picture(7, (64, 96))))) > 256


def test_the_lineage_says_that_ranges_are_moving_averages(engine: str) -> None:
    made = exported("cnn", engine, "int8-static")
    assert made.details["calibration"] == "minmax, moving average"
    wanted = {"step": "export", "runtime": engine, "precision": "int8-static", "size": [64, 96], "dynamic": False}
    assert export_step(made, STATIC) == wanted | {"calibration": "minmax, moving average", "calibration_pictures": 2}


@pytest.mark.parametrize("option", REFUSED)
def test_what_it_cannot_do_is_refused(engine: str, option: str, tmp_path: Path) -> None:
    options = dataclasses.replace(STATIC, **{option: REFUSED[option]})
    with pytest.raises(ConfigError, match=rf"{engine} does not have .* onnxruntime or openvino"):
        runtime(engine).export(cnn(), options, tmp_path)


def test_trained_grids_are_not_replaced_silently(engine: str, tmp_path: Path) -> None:
    model = cnn()
    name, weight = next((key, value) for key, value in model.model.state_dict().items() if value.ndim == 4)
    zero = Quantization({name: Channels(torch.full((len(weight),), 1e6), 0)})
    assert zero.fits(model.model)  # with steps so large every weight is the integer 0
    with pytest.raises(ConfigError, match="trained on INT8 grids"):
        runtime(engine).export(dataclasses.replace(model, quantization=zero), STATIC, tmp_path)


def test_stale_grids_do_not_stand_in_for_calibration(engine: str, tmp_path: Path) -> None:
    stale = Quantization({"nowhere": Channels(torch.ones(1), 0)})
    source, options = dataclasses.replace(cnn(), quantization=stale), dataclasses.replace(STATIC, calibration=())
    with pytest.raises(ConfigError, match="calibration set is empty"):
        runtime(engine).export(source, options, tmp_path)


@pytest.mark.parametrize("kind", ["random", "empty", "half", "part"])
def test_damaged_files_are_refused(engine: str, kind: str, tmp_path: Path) -> None:
    """ExecuTorch 1.5 ends the process on a file of random bytes: it never gets to see one."""
    good = exported("cnn", engine, "int8-static")
    data = good.file(FILES[engine]).read_bytes()
    noise = np.random.default_rng(0).bytes(5000)
    part = {"litert": data[:-5000] + noise, "executorch": data[:64] + noise + data[5064:]}[engine]
    damaged = {"random": noise, "empty": b"", "half": data[: len(data) // 2], "part": part}
    with pytest.raises(BundleError, match=f"{engine} cannot load"):
        runtime(engine).open(with_file(good, tmp_path, FILES[engine], damaged[kind]), SessionOptions())


def test_opening_and_running_print_nothing(engine: str, capfd: pytest.CaptureFixture[str]) -> None:
    opened(engine, "cnn", "fp32").run(picture(1, (64, 96)))
    assert capfd.readouterr() == ("", "")
