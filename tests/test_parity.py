"""Agreement of an export with PyTorch: figures in closed form, limits, and what happens to a bad export."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from leadline.errors import ConfigError, NumericalError, ParityError
from leadline.runtimes import export as export_module
from leadline.runtimes.base import ExportOptions, Precision, Session
from leadline.runtimes.export import export_bundle
from leadline.runtimes.parity import Parity, check_parity, compare_outputs, measure_parity
from tiny_models import cnn


class Fixed(Session):
    """Returns its input's first channel after a change."""

    def __init__(self, change: Any) -> None:
        super().__init__("fixed", cnn().contract)
        self._change = change

    @property
    def precision_ran(self) -> str:
        return "fp32"

    def _infer(self, values: np.ndarray) -> np.ndarray:
        return np.asarray(self._change(values[:, :1]), np.float32)


def ramp() -> np.ndarray:
    return np.linspace(1, 3, 64 * 96, dtype=np.float32).reshape(1, 1, 64, 96)


def figures(**changes: Any) -> Parity:
    same: dict[str, Any] = {"pictures": 1, "max_abs": 0.0, "mean_abs": 0.0, "relative": 0.0, "abs_rel": 0.0}
    same |= {"correlation": 1.0, "spread": 0.5, "delta1": 1.0}
    return Parity(**(same | changes))


def test_equal_outputs() -> None:
    found = compare_outputs(ramp(), ramp())
    assert (found.max_abs, found.mean_abs, found.relative, found.delta1, found.abs_rel) == (0, 0, 0, 1, 0)
    assert found.correlation == pytest.approx(1)


def test_a_shift_in_closed_form() -> None:
    """A uniform ramp from 1 to 3 has standard deviation 2/sqrt(12) and E[1/x] = ln(3)/2."""
    found = compare_outputs(ramp() + np.float32(0.1), ramp())
    assert found.max_abs == pytest.approx(0.1, abs=1e-6)
    assert found.relative == pytest.approx(0.1 / (2 / np.sqrt(12)), rel=1e-3)
    assert found.abs_rel == pytest.approx(0.1 * np.log(3) / 2, rel=1e-3)
    assert found.correlation == pytest.approx(1)
    assert found.delta1 == 1


def test_delta1_is_the_share_within_a_quarter() -> None:
    other = ramp().copy()
    other[..., :24] *= 1.3
    assert compare_outputs(other, ramp()).delta1 == pytest.approx(0.75)


def test_a_negated_map_does_not_correlate() -> None:
    assert compare_outputs(4 - ramp(), ramp()).correlation == pytest.approx(-1, abs=1e-6)


def test_constant_maps() -> None:
    flat = np.full((1, 1, 4, 4), 2.0, np.float32)
    assert compare_outputs(flat, flat).correlation == 1
    assert compare_outputs(flat, ramp()[..., :4, :4]).correlation == 0
    assert compare_outputs(np.zeros_like(flat), np.zeros_like(flat)).relative == 0


@pytest.mark.parametrize(
    ("precision", "relative", "fits"),
    [
        ("fp32", 9e-4, True),
        ("fp32", 2e-3, False),
        ("bf16", 0.09, True),
        ("bf16", 0.2, False),
        ("int8-static", 1.5, False),
    ],
)
def test_limits_depend_on_the_precision(precision: str, relative: float, fits: bool) -> None:
    if fits:
        check_parity(figures(relative=relative), Precision(precision), name="m")
        return
    with pytest.raises(ParityError, match=f"{relative:.3g}"):
        check_parity(figures(relative=relative), Precision(precision), name="m")


def test_int8_must_still_show_the_scene() -> None:
    with pytest.raises(ParityError, match=r"correlation is 0\.50000.*Calibrate"):
        check_parity(figures(relative=0.5, correlation=0.5), Precision.INT8_STATIC, name="m")
    check_parity(figures(relative=0.5, correlation=0.5, spread=0.001), Precision.INT8_STATIC, name="flat reference")


def test_sessions_are_compared_over_all_inputs() -> None:
    inputs = [np.repeat(ramp() + step, 3, axis=1) for step in (0, np.float32(1))]
    found = measure_parity(Fixed(lambda x: x + 0.25), Fixed(lambda x: x), inputs)
    assert found.pictures == 2
    assert found.mean_abs == pytest.approx(0.25, abs=1e-6)


def test_shapes_nan_and_no_inputs() -> None:
    inputs = [np.repeat(ramp(), 3, axis=1)]
    with pytest.raises(ParityError, match="another shape"):
        measure_parity(Fixed(lambda x: x[..., ::2, ::2]), Fixed(lambda x: x), inputs)
    with pytest.raises(NumericalError, match="'fixed"):
        measure_parity(Fixed(lambda x: x * np.nan), Fixed(lambda x: x), inputs)
    with pytest.raises(ConfigError, match="no pictures"):
        measure_parity(Fixed(lambda x: x), Fixed(lambda x: x), [])


def test_a_bad_export_leaves_what_was_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    out = tmp_path / "bundle"
    good = export_bundle(cnn(), "torch", ExportOptions(), out)
    before = {path.name: path.read_bytes() for path in out.iterdir()}
    adapter = export_module.required("torch")
    monkeypatch.setattr(adapter, "open", lambda *_: Fixed(lambda x: x))
    with pytest.raises(ParityError):
        export_bundle(cnn(), "torch", ExportOptions(), out)
    assert {path.name: path.read_bytes() for path in out.iterdir()} == before
    assert [path.name for path in tmp_path.iterdir()] == ["bundle"]
    assert good.details["parity"]["max_abs"] == 0
