"""The latency table: pieces that cover a network, sums, interpolation and the cache."""

from __future__ import annotations

import math
import sqlite3
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

import tiny_models
from leadline.compression.graph import groups
from leadline.compression.latency_table import LatencyTable, surrounding
from leadline.compression.piece import Piece
from leadline.compression.piece_network import PieceNetwork
from leadline.compression.piece_timing import EngineTimer, Reading, in_turn
from leadline.compression.pieces import pieces
from leadline.compression.resources import Latency, Macs, Weights, narrowed, shapes_of
from leadline.errors import ConfigError, DataError, UnavailableError
from leadline.evaluation.complexity import count_kernel_weights, count_macs
from leadline.runtimes.base import RUNTIMES, Availability, SessionOptions, runtime

SIZE = (64, 96)
CALL = 5000.0
TRIFLE = 300  # the call that computes nothing has three multiply-accumulates, and each piece may hold some calls
KEPT = {"mobilenet.0.0": 5, "mobilenet.5.3": 11, "mobilenet.8.3": 13}


class Counting:
    """Multiply-accumulates for milliseconds, those of making a piece's inputs included, and CALL for every call."""

    def __init__(self, **changes: Any) -> None:
        self.identity = {"engine": "toy", "version": "1", "machine": "m", "threads": 1, "precision": "fp32"} | changes
        self.calls: list[Piece] = []

    def scale(self, known: float | None = None) -> float:
        return known or 1.0

    def time(self, piece: Piece) -> Reading:
        self.calls.append(piece)
        network = PieceNetwork(piece)
        return Reading(CALL + float(count_macs(network, network.size)), 0.01, 7)


class Curve(Counting):
    """A cost that bends in both widths and has a constant part, as engines have."""

    def time(self, piece: Piece) -> Reading:
        self.calls.append(piece)
        return Reading(self.cost([width for _, width in piece.widths]) if piece.calls else 0.0, 0.0, 1)

    @staticmethod
    def cost(widths: list[int]) -> float:
        a, b = widths
        return 0.02 + 1e-4 * (a * b) ** 0.85 + 2e-4 * (a + b)


@pytest.mark.parametrize("name", ["cnn", "vit"])
def test_pieces_add_up_to_the_network(name: str, tmp_path: Path) -> None:
    model, size = (tiny_models.cnn(), SIZE) if name == "cnn" else (tiny_models.vit(), tiny_models.VIT_SIZE)
    with LatencyTable(tmp_path / "table", Counting()) as table:
        assert table.network(model.model, size) == pytest.approx(CALL + count_macs(model.model, size), abs=TRIFLE)


def test_pieces_add_up_at_other_widths_without_values(tmp_path: Path) -> None:
    shapes = narrowed(shapes_of(tiny_models.cnn()), {name: range(width) for name, width in KEPT.items()})
    assert {group.width for group in groups(shapes) if group.name in KEPT} == set(KEPT.values())
    timer = Counting()
    with LatencyTable(tmp_path / "table", timer) as table:
        expected = CALL + count_macs(shapes.model, SIZE)
        assert table.network(shapes.model, SIZE) == pytest.approx(expected, abs=TRIFLE)
        # 11 lies between 8 and 16 of the grid, and multiply-accumulates are linear in each width
        asked = {width for piece in timer.calls for _, width in piece.widths}
        assert {8, 16} <= asked
        assert not {11, 13} & asked


def test_what_engines_fuse_is_one_piece() -> None:
    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.n = nn.Conv2d(3, 8, 3, padding=1, bias=False), nn.BatchNorm2d(8)
            self.b, self.c = nn.Conv2d(8, 8, 3, padding=1, groups=8), nn.Conv2d(8, 1, 1)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            y = torch.relu(self.n(self.a(x)))
            return self.c(torch.relu(self.b(y)) + y)

    found = pieces(Net().eval(), (4, 6))
    assert [[call.name for call in piece.calls] for piece in found] == [
        ["conv2d", "batch_norm", "relu"],
        ["conv2d", "relu", "add"],
        ["conv2d"],
    ]
    assert found[1].inputs == ((1, "a", 4, 6),)  # a depthwise convolution and its skip: one width
    assert found[1].constants == (("a", 1, 3, 3), ("a",))
    assert found[2].widths == (("a", 8),)


def test_one_channel_is_no_free_width() -> None:
    head = nn.Sequential(nn.Conv2d(3, 8, 1), nn.Conv2d(8, 1, 1, bias=False), nn.BatchNorm2d(1), nn.ReLU())
    _, piece = pieces(head.eval(), (4, 6))
    assert piece.constants == ((1, "a", 1, 1), (1,), (1,), (1,), (1,))
    assert piece.widths == (("a", 8),)
    network = PieceNetwork(piece.at((24,))).eval()
    with torch.no_grad():
        assert network(torch.ones(1, 3, 4, 6)).shape == (1, 1, 4, 6)


def test_interpolation_on_withheld_widths(tmp_path: Path) -> None:
    piece = pieces(nn.Sequential(nn.Conv2d(3, 8, 1), nn.Conv2d(8, 8, 3, padding=1)), (8, 8))[1]
    timer = Curve()
    with LatencyTable(tmp_path / "table", timer) as table:
        for a in range(72, 1025, 56):
            for b in (8, 40, 88, 200, 312, 600, 1000):
                assert table.piece(piece.at((a, b))) == pytest.approx(Curve.cost([a, b]), rel=0.01)
    assert all(surrounding(width) == (width,) for made in timer.calls for _, width in made.widths)


@pytest.mark.parametrize(
    ("width", "ends"),
    [
        (1, (1,)),
        (7, (7,)),
        (8, (8,)),
        (12, (8, 16)),
        (64, (64,)),
        (72, (64, 80)),
        (136, (128, 160)),
        (1000, (896, 1024)),
    ],
)
def test_grid(width: int, ends: tuple[int, ...]) -> None:
    assert surrounding(width) == ends


def test_a_hit_measures_nothing(tmp_path: Path) -> None:
    model = tiny_models.cnn().model
    with LatencyTable(tmp_path / "table", Counting()) as table:
        first = table.network(model, SIZE)
        assert table.measured > 0
    timer = Counting()
    with LatencyTable(tmp_path / "table", timer) as table:
        assert table.network(model, SIZE) == first
        assert table.measured == 0
        assert table.readings()[0] == Reading(table.readings()[0].milliseconds, 0.01, 7)
    assert timer.calls == []


@pytest.mark.parametrize("change", [{"version": "2"}, {"threads": 2}, {"engine": "other"}, {"machine": "n"}])
def test_another_engine_version_or_thread_count_is_a_miss(change: dict[str, Any], tmp_path: Path) -> None:
    piece = pieces(nn.Conv2d(3, 8, 1), (4, 4))[0]
    with LatencyTable(tmp_path / "table", Counting()) as table:
        table.piece(piece)
    timer = Counting(**change)
    with LatencyTable(tmp_path / "table", timer) as table:
        table.piece(piece)
    assert len(timer.calls) == 2  # the piece, and a call of nothing


def test_the_unit_of_the_first_run_stays(tmp_path: Path) -> None:
    class Scaled(Counting):
        def __init__(self, now: float) -> None:
            super().__init__()
            self.now, self.used = now, 0.0

        def scale(self, known: float | None = None) -> float:
            self.used = self.now if known is None else known
            return self.used

    first, later = Scaled(1.5), Scaled(9.0)
    with LatencyTable(tmp_path / "table", first), LatencyTable(tmp_path / "table", later):
        assert (first.used, later.used) == (1.5, 1.5)


def test_files_that_are_no_table(tmp_path: Path) -> None:
    (tmp_path / "text").write_text("not a table, but long enough to be taken for one" * 40)
    with pytest.raises(DataError, match="not a latency table"):
        LatencyTable(tmp_path / "text", Counting())
    connection = sqlite3.connect(tmp_path / "newer")
    connection.execute("PRAGMA user_version=99")
    connection.close()
    with pytest.raises(DataError, match="newer version"):
        LatencyTable(tmp_path / "newer", Counting())


def test_rounds_in_turn_cancel_a_busy_neighbour() -> None:
    class Busy:
        """Three times as slow from some moment on, for both alike."""

        clock = 0

        def __init__(self, ms: float) -> None:
            self.ms = ms

        def run(self, runs: int) -> list[float]:
            Busy.clock += 1
            return [self.ms * (3 if Busy.clock > 17 else 1)] * runs

    share, spread, runs = in_turn(Busy(6.0), Busy(2.0), rounds=15)
    assert share == pytest.approx(3.0)
    assert spread == pytest.approx(0.0)
    assert runs == 15
    with pytest.raises(ConfigError, match="at least one round"):
        in_turn(Busy(1.0), Busy(1.0), rounds=0)


def test_latency_is_anchored_where_a_network_was_measured(tmp_path: Path) -> None:
    class Engine:
        """The whole network takes 1.25 times its pieces, and half of that once it is narrowed."""

        def alone(self, network: Any, size: tuple[int, int]) -> float:
            return 1.25 * (CALL + count_macs(network.model, size))

        def against(self, network: Any, first: Any, size: tuple[int, int]) -> float:
            return 0.5

    source = tiny_models.cnn()
    small = narrowed(shapes_of(source), {name: range(width) for name, width in KEPT.items()})
    whole, part = (CALL + count_macs(network.model, SIZE) for network in (source, small))
    with LatencyTable(tmp_path / "table", Counting()) as table:
        latency = Latency(table, Engine(), SIZE)  # type: ignore[arg-type]
        assert latency.measure(source) == pytest.approx(1.25 * whole)
        assert latency.estimate(small) == pytest.approx(1.25 * part, rel=1e-4)
        assert latency.measure(small) == pytest.approx(0.625 * whole)
        assert latency.estimate(small) == pytest.approx(0.625 * whole)
        assert latency.from_start(source, small, 1.25 * whole) == pytest.approx(1.25 * part, rel=1e-4)


def test_counts() -> None:
    source = tiny_models.cnn()
    assert Macs(SIZE).estimate(shapes_of(source)) == Macs(SIZE).measure(source) == count_macs(source.model, SIZE)
    assert Weights().estimate(shapes_of(source)) == count_kernel_weights(source.model)


SLOW_TO_OPEN = ("torch-compile", "litert", "executorch", "coreml", "tensorrt", "web")


@pytest.mark.parametrize("engine", [pytest.param(e, marks=[pytest.mark.slow] * (e in SLOW_TO_OPEN)) for e in RUNTIMES])
def test_an_engine_is_timed(engine: str, tmp_path: Path) -> None:
    state = runtime(engine).availability()
    if not state.available or state.export_only:
        pytest.skip(state.reason or state.export_only)
    piece = pieces(nn.Sequential(nn.Conv2d(3, 8, 1), nn.Conv2d(8, 8, 3, padding=1, groups=8), nn.ReLU()), (16, 24))[1]
    timer = EngineTimer(engine, rounds=3)
    with LatencyTable(tmp_path / "table", timer) as table:
        small, large = (table._at(piece.at((width,))).milliseconds for width in (8, 1024))
    assert 0 < small < large
    assert timer.identity["engine"] == engine
    assert timer.identity["version"]


def test_an_engine_whose_files_do_not_run_here_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    elsewhere = Availability(True, version="1", export_only="CoreML runs on macOS only")
    monkeypatch.setattr(type(runtime("coreml")), "availability", lambda _: elsewhere)
    with pytest.raises(UnavailableError, match=r"cannot measure latency 'coreml': CoreML runs on macOS only"):
        EngineTimer("coreml")


def test_the_clock_is_that_of_the_processor_only_where_it_sees_all_the_work() -> None:
    assert EngineTimer("torch")._alone
    assert not EngineTimer("torch", SessionOptions(threads=2))._alone
    assert not EngineTimer("torch", SessionOptions(device="cuda"))._alone
    assert not runtime("web").in_process
    assert EngineTimer("torch", SessionOptions(device="cuda")).identity["device"] == "cuda"
    assert "device" not in EngineTimer("torch").identity  # tables that were measured before stay good


def test_the_graph_of_a_piece_at_other_widths_is_the_pieces_own() -> None:
    import onnx
    from onnxruntime import InferenceSession

    from leadline.compression.piece_timing import _Template

    net = nn.Sequential(nn.Conv2d(3, 8, 1), nn.Conv2d(8, 12, 3, padding=1), nn.BatchNorm2d(12), nn.ReLU6())
    piece = pieces(net.eval(), (6, 10))[1]
    proto = _Template(piece).at(piece.at((20, 44)))
    shapes = {tuple(tensor.dims) for tensor in proto.graph.initializer}
    assert {(20, 3, 1, 1), (44, 20, 3, 3)} <= shapes
    assert all(math.prod(shape) <= 44 * 20 * 9 for shape in shapes)
    onnx.checker.check_model(proto, full_check=True)
    session = InferenceSession(proto.SerializeToString(), providers=["CPUExecutionProvider"])
    (result,) = session.run(None, {"input": np.ones((1, 3, 6, 10), np.float32)})
    assert result.shape == (1, 1, 6, 10)
    assert np.isfinite(result).all()
