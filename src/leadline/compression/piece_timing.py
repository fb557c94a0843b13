"""How long an engine takes for a piece, or for a whole network: batch 1, warmed up, medians of several rounds."""

from __future__ import annotations

import tempfile
import time
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from leadline.compression.piece import Piece
from leadline.compression.piece_network import PieceNetwork, picture_size
from leadline.contract import Contract, InputSpec, OutputSpec
from leadline.depth import Kind
from leadline.errors import ConfigError, UnavailableError
from leadline.evaluation.latency import alternate, ratio
from leadline.evaluation.machine import this_machine
from leadline.reference import LoadedModel
from leadline.runtimes.base import ExportOptions, SessionOptions, required
from leadline.runtimes.onnx_export import export_onnx
from leadline.runtimes.onnx_source import OnnxNetwork

if TYPE_CHECKING:
    from collections.abc import Iterator

    import onnx

    from leadline.evaluation.latency import Timed
    from leadline.runtimes.base import Session

WARMUP = 3
ROUNDS = 15
ROUND_MS = 4.0  # a round is at least so long, or one run
MOST_RUNS = 100  # of a round
STAND_INS = (37, 41, 43, 47, 53, 59, 61, 67, 71, 73, 79, 83, 89, 97, 101, 103, 107, 109, 113, 127, 131, 137, 139, 149)


@dataclass(frozen=True)
class Reading:
    """A measured time.

    Args:
        milliseconds: of one run.
        spread: distance between the quartiles of the rounds, as a share of the time.
        runs: that were timed.
    """

    milliseconds: float
    spread: float
    runs: int


class Yardstick(nn.Module):
    """What every piece is timed in turn with: a full, a depthwise and a pointwise convolution, about a millisecond.

    A busy neighbour on the same core slows both, often to half the speed and for seconds; their ratio stays.
    """

    SIZE = (56, 72)

    def __init__(self) -> None:
        super().__init__()
        generator = torch.Generator().manual_seed(0)
        full, alone = nn.Conv2d(3, 32, 3, padding=1), nn.Conv2d(32, 32, 3, padding=1, groups=32)
        point = nn.Conv2d(32, 96, 1)
        self.layers = nn.Sequential(full, nn.ReLU6(), alone, nn.ReLU6(), point, nn.ReLU6())
        for parameter in self.parameters():
            parameter.data = torch.randn(parameter.shape, generator=generator) / 10

    def forward(self, image: Tensor) -> Tensor:
        """1 x 1 x 56 x 72 from 1 x 3 x 56 x 72."""
        return image[:, :1] + F.avg_pool2d(self.layers(image), self.SIZE).mean((1, 2, 3), keepdim=True)


class EngineTimer:
    """Times pieces and networks on one engine of this machine.

    Args:
        runtime: its name.
        options: threads and device of the engine.
        rounds: of each measurement.

    Raises:
        UnavailableError: the engine is not installed, or its files do not run on this machine.
    """

    def __init__(self, runtime: str, options: SessionOptions | None = None, rounds: int = ROUNDS) -> None:
        self._adapter = required(runtime)
        self._options, self._rounds = options or SessionOptions(), rounds
        here = self._adapter.availability()
        if here.export_only:
            mend = "name an engine that runs here (`leadline doctor`)"
            raise UnavailableError("cannot measure latency", where=runtime, why=here.export_only, mend=mend)
        self._alone = self._adapter.in_process and self._options == SessionOptions(threads=1)
        self._templates: dict[str, _Template] = {}
        self._yardstick: Working | None = None
        self._yardstick_ms = 0.0
        machine = replace(this_machine(), versions={}, python="")
        self.identity: dict[str, Any] = {
            "engine": runtime,
            "version": here.version,
            "machine": machine.id,
            "threads": self._options.threads,
            "precision": "fp32",
            **({} if self._options.device == "cpu" else {"device": self._options.device}),
        }

    def scale(self, known: float | None = None) -> float:
        """Milliseconds that the yardstick counts for: as measured before, or the quickest of many rounds now."""
        if known is None:
            yardstick = self._measure_of_all()
            runs = _runs(yardstick)
            known = min(float(np.median(yardstick.run(runs))) for _ in range(2 * self._rounds))
        self._yardstick_ms = known
        return known

    def time(self, piece: Piece) -> Reading:
        """Time a piece at its widths, with the making of its inputs; `scale` must have been called.

        Raises:
            UnavailableError: the engine lacks an operator of the piece.
        """
        yardstick = self._measure_of_all()
        with tempfile.TemporaryDirectory(prefix="leadline-") as folder, self._opened(piece, Path(folder)) as timed:
            share, spread, runs = in_turn(timed, yardstick, self._rounds)
        return Reading(share * self._yardstick_ms, spread, runs)

    @contextmanager
    def network(self, network: LoadedModel, size: tuple[int, int]) -> Iterator[Timed]:
        """A whole network, opened.

        Raises:
            UnavailableError: it cannot be exported to the engine.
        """
        with tempfile.TemporaryDirectory(prefix="leadline-") as folder:
            made = self._adapter.export(network, ExportOptions(size=size), Path(folder))
            session = self._adapter.open(made, self._options)
            try:
                yield Working(session, size, alone=self._alone)
            finally:
                session.close()

    def against(self, network: LoadedModel, first: LoadedModel, size: tuple[int, int]) -> float:
        """How much of the time of `first` another network takes: the median ratio of rounds timed in turn."""
        with self.network(first, size) as theirs, self.network(network, size) as ours:
            return in_turn(ours, theirs, self._rounds)[0]

    def alone(self, network: LoadedModel, size: tuple[int, int]) -> float:
        """Milliseconds of a whole network, on the scale of the pieces: against the yardstick."""
        yardstick = self._measure_of_all()
        with self.network(network, size) as timed:
            return in_turn(timed, yardstick, self._rounds)[0] * self._yardstick_ms

    def _measure_of_all(self) -> Working:
        """The yardstick, opened once."""
        if self._yardstick is None:
            source = LoadedModel(Yardstick().eval(), _contract(Yardstick.SIZE), "yardstick")
            session = self._adapter.open_network(source, self._options)
            self._yardstick = Working(session, Yardstick.SIZE, alone=self._alone)
        return self._yardstick

    @contextmanager
    def _opened(self, piece: Piece, folder: Path) -> Iterator[Timed]:
        size = picture_size(piece)
        contract = _contract(size)
        model: nn.Module
        if self._adapter.takes_onnx:
            if piece.kind not in self._templates:
                self._templates[piece.kind] = _Template(piece)
            path = folder / "piece.onnx"
            path.write_bytes(self._templates[piece.kind].at(piece).SerializeToString())
            model = OnnxNetwork(path, contract)
        else:
            model = PieceNetwork(piece).eval()
        session = self._adapter.open_network(LoadedModel(model, contract, "piece"), self._options)
        try:
            yield Working(session, size, alone=self._alone)
        finally:
            session.close()


def in_turn(timed: Timed, yardstick: Timed, rounds: int = ROUNDS) -> tuple[float, float, int]:
    """Time something in turn with a yardstick, A B, B A, ..., after a warm-up of both.

    Returns:
        Its time as a share of the yardstick's (the median over the rounds), the distance between the quartiles as a
        share of that, and the number of timed runs.

    Raises:
        ConfigError: no round was asked for.
    """
    if rounds < 1:
        raise ConfigError("a measurement needs at least one round", why=f"got {rounds}")
    ours, theirs = _runs(timed), _runs(yardstick)
    mine, reference = alternate(_Times(timed, ours), _Times(yardstick, theirs), rounds, rounds)
    found = ratio(mine, reference)
    return found.value, (found.high - found.low) / found.value, ours * rounds


class _Times:
    """A turn of so many runs in the place of one."""

    def __init__(self, timed: Timed, runs: int) -> None:
        self._timed, self._runs = timed, runs

    def run(self, runs: int) -> list[float]:
        """Milliseconds of each."""
        return self._timed.run(runs * self._runs)


def _runs(timed: Timed) -> int:
    """Runs of a round, after the warm-up."""
    once = min(timed.run(WARMUP))
    return min(MOST_RUNS, max(1, round(ROUND_MS / max(once, 1e-6))))


class Working:
    """A session, timed by the clock of the processor where it computes `alone`: in one thread of this process.

    On a quiet machine that is the latency; on a busy one it leaves out the time in which a neighbour had the core,
    which would fall on long runs and spare short ones. Elsewhere it is the clock on the wall.
    """

    def __init__(self, session: Session, size: tuple[int, int], *, alone: bool) -> None:
        self._session = session
        self._values = np.random.default_rng(0).uniform(-1, 1, (1, 3, *size)).astype(np.float32)
        self._clock = time.process_time_ns if alone else time.perf_counter_ns

    def run(self, runs: int) -> list[float]:
        """Milliseconds of each run."""
        times = []
        for _ in range(runs):
            started = self._clock()
            self._session.run(self._values)
            times.append((self._clock() - started) / 1e6)
        return times


def _contract(size: tuple[int, int]) -> Contract:
    spec = InputSpec(height=size[0], width=size[1])
    return Contract(name="piece", input=spec, output=OutputSpec(kind=Kind.RELATIVE_DEPTH))


class _Template:
    """The ONNX graph of a piece whose free widths are numbers that occur nowhere else in it, to be put in.

    Exporting takes a second or two, and a table needs each piece at many widths.
    """

    def __init__(self, piece: Piece) -> None:
        taken = set(_integers(piece))
        free = (number for number in STAND_INS if number not in taken)
        self._stand_ins = [next(free) for _ in piece.widths]
        network = PieceNetwork(piece.at(self._stand_ins)).eval()
        with torch.no_grad():
            self._proto = export_onnx(network, _contract(network.size))

    def at(self, piece: Piece) -> onnx.ModelProto:
        """The graph at the piece's widths, with random weights."""
        import onnx

        exact = dict(zip(self._stand_ins, (width for _, width in piece.widths), strict=True))
        proto = onnx.ModelProto()
        proto.CopyFrom(self._proto)
        graph = proto.graph
        del graph.value_info[:]
        random = np.random.default_rng(0)
        for number, tensor in enumerate(graph.initializer):
            if tensor.data_type == onnx.TensorProto.INT64:
                values = onnx.numpy_helper.to_array(tensor)
                changed = np.vectorize(lambda value: exact.get(int(value), int(value)), otypes=[np.int64])(values)
                graph.initializer[number].CopyFrom(onnx.numpy_helper.from_array(changed, tensor.name))
            elif any(dim in exact for dim in tensor.dims):
                shape = tuple(exact.get(dim, dim) for dim in tensor.dims)
                spread = max(1.0, float(np.prod(shape[1:]))) ** -0.5
                filled = random.normal(0, spread, shape) if len(shape) > 1 else np.ones(shape)
                graph.initializer[number].CopyFrom(onnx.numpy_helper.from_array(filled.astype(np.float32), tensor.name))
        for node in graph.node:
            for attribute in node.attribute:
                if attribute.name == "group" and attribute.i in exact:
                    attribute.i = exact[attribute.i]
        return proto


def _integers(piece: Piece) -> Iterator[int]:
    """Every number in a piece that a stand-in must not equal."""
    yield from (dim for dims in (*piece.inputs, *piece.constants, piece.image) for dim in dims if isinstance(dim, int))
    yield from _within([(call.arguments, call.options) for call in piece.calls])


def _within(value: Any) -> Iterator[int]:
    if isinstance(value, int):
        yield value
    elif isinstance(value, list | tuple):
        for each in value:
            yield from _within(each)
