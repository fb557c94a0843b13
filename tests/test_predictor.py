"""The predictor: any picture size, the right kind, and errors that name the engine."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import pytest
from PIL import Image

import leadline
from leadline.contract import Contract, InputSpec, OutputSpec
from leadline.depth import Intrinsics, Kind
from leadline.errors import ConfigError, ContractError, ImageReadError, ModelReferenceError, NumericalError
from leadline.predictor import Predictor
from leadline.runtimes.base import Session

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

SPEC = InputSpec(height=32, width=64, dynamic=True, multiple_of=32, min_side=32)


class Computed(Session):
    """A session whose network is a function."""

    def __init__(self, network: Callable[[np.ndarray], np.ndarray], kind: Kind = Kind.METRIC_DEPTH) -> None:
        super().__init__("imagined", Contract(name="test", input=SPEC, output=OutputSpec(kind=kind)))
        self.network, self.shapes = network, []

    @property
    def precision_ran(self) -> str:
        return "fp16"

    def _infer(self, values: np.ndarray) -> np.ndarray:
        self.shapes.append(values.shape)
        return self.network(values)


def brightness(values: np.ndarray) -> np.ndarray:
    return values.mean(axis=1, keepdims=True) * 10


@pytest.mark.parametrize("shape", [(1, 1), (1, 5000), (5000, 1), (7, 5), (33, 65), (480, 640)])
@pytest.mark.parametrize("kind", [Kind.METRIC_DEPTH, Kind.RELATIVE_DISPARITY])
def test_any_size_gives_a_map_of_that_size_and_kind(shape: tuple[int, int], kind: Kind) -> None:
    depth = Predictor(Computed(brightness, kind)).predict(np.full((*shape, 3), 51, np.uint8))
    assert depth.shape == shape
    assert depth.kind is kind
    np.testing.assert_allclose(depth.values, 2.0, rtol=1e-5)  # 51 / 255 * 10


@pytest.mark.parametrize("shape", [(1, 1), (1, 5000), (7, 5)])
def test_a_real_network_takes_odd_sizes(shape: tuple[int, int]) -> None:
    with leadline.load("random:fastdepth-pruned") as predictor:
        depth = predictor.predict(np.zeros((*shape, 3), np.uint8))
    assert depth.shape == shape
    assert np.isfinite(depth.values).all()
    assert predictor.contract.name == "random:fastdepth-pruned"


def test_file_array_and_pillow_picture_give_the_same(tmp_path: Path) -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (20, 30, 3), np.uint8)
    Image.fromarray(pixels).save(tmp_path / "a b.png")
    predictor = Predictor(Computed(brightness))
    camera = Intrinsics(20, 20, 15, 10)
    by_file = predictor.predict(tmp_path / "a b.png", camera)
    assert by_file.source == str(tmp_path / "a b.png")
    assert by_file.intrinsics == camera
    for other in (str(tmp_path / "a b.png"), pixels, Image.fromarray(pixels)):
        np.testing.assert_array_equal(predictor.predict(other).values, by_file.values)


def test_the_size_reaches_the_session() -> None:
    session = Computed(brightness)
    Predictor(session, (64, 96)).predict(np.zeros((10, 10, 3), np.uint8))
    assert session.shapes == [(1, 3, 64, 96)]
    with pytest.raises(ContractError, match="Use 64,96"):
        Predictor(session, (60, 100))


@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_what_is_not_finite_names_the_engine_and_its_precision(bad: float) -> None:
    predictor = Predictor(Computed(lambda values: np.full((1, 1, 4, 4), bad, np.float32)))
    with pytest.raises(NumericalError, match=r"imagined \(fp16\)") as caught:
        predictor.predict(np.zeros((10, 10, 3), np.uint8))
    assert caught.value.exit_status == 1


def test_wrong_pictures_are_refused(tmp_path: Path) -> None:
    predictor = Predictor(Computed(brightness))
    with pytest.raises(ContractError, match="uint8 H x W x 3"):
        predictor.predict(np.zeros((10, 10, 3), np.float32))
    with pytest.raises(ImageReadError, match="no such file"):
        predictor.predict(tmp_path / "none.png")


def test_load_exports_when_a_runtime_is_named() -> None:
    picture = np.random.default_rng(0).integers(0, 256, (224, 224, 3), np.uint8)
    eager = leadline.load("random:fastdepth-pruned").predict(picture)
    with leadline.load("random:fastdepth-pruned", runtime="onnxruntime") as predictor:
        assert predictor.session.engine == "onnxruntime"
        np.testing.assert_allclose(predictor.predict(picture).values, eager.values, atol=1e-3)


def test_load_refuses_what_it_does_not_know() -> None:
    with pytest.raises(ModelReferenceError, match="leadline-nonsense"):
        leadline.load("leadline-nonsense")
    with pytest.raises(ConfigError, match="unknown runtime"):
        leadline.load("random:fastdepth", runtime="onnxruntim")
    with pytest.raises(ConfigError, match="needs a runtime"):
        leadline.load("random:fastdepth", precision="fp16")
    with pytest.raises(ConfigError, match="unknown precision"):
        leadline.load("random:fastdepth", runtime="torch", precision="fp8")
