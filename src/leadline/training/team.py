"""The processes of one run: torchrun starts them, each takes its rows of every batch, and sums make them one.

The loss of the run is the sum of what each process's loss contributes, and its gradient the sum of their gradients:
nothing is a mean of means. Collectives on plain numbers go over gloo, those on the GPU's tensors over NCCL.
"""

from __future__ import annotations

import os
from datetime import timedelta
from typing import TYPE_CHECKING, Any, TypeVar

import torch
from torch import distributed

from leadline.depth import Kind
from leadline.errors import ConfigError, ProcessError, UnavailableError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Sequence
    from types import TracebackType

    from torch import Tensor, nn

T = TypeVar("T")
LAUNCHED = ("RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT")  # what torchrun sets
PATIENCE = timedelta(hours=2)  # while one process validates, the others wait
_KINDS = list(Kind)


def launched() -> bool:
    """True in a process that torchrun (or whoever sets the same variables) started together with others."""
    return all(name in os.environ for name in LAUNCHED) and int(os.environ["WORLD_SIZE"]) > 1


def own_device(wanted: str) -> torch.device:
    """The device that a run names; under torchrun each process takes the GPU of its own number.

    Raises:
        ConfigError: there is no such device here.
    """
    found = torch.cuda.device_count() if torch.cuda.is_available() else 0
    mend = "use --device cpu, or install a CUDA build of torch on a machine with a GPU"
    if wanted.startswith("cuda") and not found:
        raise ConfigError("no such device here", where=wanted, why="torch finds no CUDA device", mend=mend)
    if launched() and (wanted == "cuda" or (wanted == "auto" and found)):
        number = int(os.environ.get("LOCAL_RANK", "0"))
        if number >= found:
            why = f"process {number + 1} of this machine, but it has {found} GPU{'s' if found > 1 else ''}"
            raise ConfigError("no GPU for", where=f"cuda:{number}", why=why, mend="lower --nproc-per-node")
        torch.cuda.set_device(number)
        return torch.device("cuda", number)
    if wanted == "auto":
        return torch.device("cuda" if found else "cpu")
    return torch.device(wanted)


class Team:
    """This process among those of the run; alone (`size` 1), everything here does nothing.

    Used as a context, it joins the others on entering and leaves when the block succeeds.

    Args:
        device: where this process computes.
    """

    def __init__(self, device: torch.device) -> None:
        self.device = device
        self.rank, self.size = (int(os.environ["RANK"]), int(os.environ["WORLD_SIZE"])) if launched() else (0, 1)
        self._ours = False

    @property
    def leads(self) -> bool:
        """Whether this process writes and speaks for all."""
        return self.rank == 0

    def __enter__(self) -> Team:
        if self.size == 1 or distributed.is_initialized():
            return self
        if not distributed.is_available():
            raise UnavailableError("several processes", why="this torch was built without torch.distributed")
        backend = "cpu:gloo,cuda:nccl" if self.device.type == "cuda" else "gloo"
        _together(lambda: distributed.init_process_group(backend, timeout=PATIENCE))
        self._ours = True
        return self

    def __exit__(self, kind: type[BaseException] | None, error: object, trace: TracebackType | None) -> None:
        if self._ours and kind is None:
            distributed.destroy_process_group()

    def rows(self, batch: int) -> slice:
        """This process's contiguous rows of a batch."""
        return slice(self.rank * batch // self.size, (self.rank + 1) * batch // self.size)

    def total(self, values: Sequence[float]) -> list[float]:
        """Each number summed over the processes."""
        if self.size == 1:
            return [float(value) for value in values]
        summed = torch.tensor(values, dtype=torch.float64)
        _together(lambda: distributed.all_reduce(summed))
        return [float(value) for value in summed]

    def check(self, well: bool = True) -> None:
        """Meet the others; a process that is about to end says so with `well` False, and the others end too.

        Raises:
            ProcessError: another process is not well.
        """
        troubled = self.total([0.0 if well else 1.0])[0]
        if well and troubled:
            raise ProcessError("another process of this run stopped", mend="its own message says why")

    def merged(self, facts: dict[str, str]) -> dict[str, str]:
        """The facts of all processes in one mapping."""
        if self.size == 1:
            return facts
        everyone: list[Any] = [None] * self.size
        _together(lambda: distributed.all_gather_object(everyone, facts))
        return {key: value for one in everyone for key, value in one.items()}

    def add(self, values: Tensor) -> Tensor:
        """`values` summed over the processes; the gradient flows to all of them."""
        return values if self.size == 1 else _apply(_Add, values)

    def gather(self, rows: Tensor) -> Tensor:
        """The rows of all processes, in order; the gradient flows to this process's own rows alone."""
        if self.size == 1:
            return rows
        counts = self.total([len(rows) if rank == self.rank else 0 for rank in range(self.size)])
        start = int(sum(counts[: self.rank]))
        return _apply(_Gather, rows, start, int(sum(counts)))

    def gather_kinds(self, kinds: tuple[Kind, ...]) -> tuple[Kind, ...]:
        """The kinds of all processes' rows."""
        codes = self.gather(torch.tensor([_KINDS.index(kind) for kind in kinds], device=self.device))
        return tuple(_KINDS[int(code)] for code in codes)

    def sum_gradients(self, parameters: Iterable[nn.Parameter]) -> None:
        """Sum the gradients over the processes, in place; a parameter without one anywhere keeps none."""
        if self.size == 1:
            return
        every = list(parameters)
        used = self.total([0.0 if parameter.grad is None else 1.0 for parameter in every])
        some = [parameter for parameter, count in zip(every, used, strict=True) if count]
        for parameter in some:
            if parameter.grad is None:
                parameter.grad = torch.zeros_like(parameter)
        gradients = [parameter.grad for parameter in some if parameter.grad is not None]
        if not gradients:
            return
        flat = torch.cat([gradient.reshape(-1) for gradient in gradients])
        _together(lambda: distributed.all_reduce(flat))
        pieces = torch.split(flat, [gradient.numel() for gradient in gradients])
        for gradient, piece in zip(gradients, pieces, strict=True):
            gradient.copy_(piece.view(gradient.shape))


class _Add(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, values: Tensor) -> Tensor:
        return _summed(values)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> Tensor:
        return _summed(gradients[0])


class _Gather(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, rows: Tensor, start: int, count: int) -> Tensor:
        ctx.span = slice(start, start + len(rows))
        whole = rows.new_zeros((count, *rows.shape[1:]), dtype=torch.uint8 if rows.dtype == torch.bool else rows.dtype)
        whole[ctx.span] = rows
        return _summed(whole).to(rows.dtype)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None, None]:
        return gradients[0][ctx.span], None, None


def _apply(function: type[torch.autograd.Function], *values: Any) -> Tensor:
    result = function.apply(*values)  # type: ignore[no-untyped-call]
    assert isinstance(result, torch.Tensor)
    return result


def _summed(values: Tensor) -> Tensor:
    copy = values.detach().clone(memory_format=torch.contiguous_format)
    _together(lambda: distributed.all_reduce(copy))
    return copy


def _together(collective: Callable[[], T]) -> T:
    """Run a collective operation.

    Raises:
        ProcessError: another process is gone.
    """
    try:
        return collective()
    except RuntimeError as error:  # torch.distributed's own errors are subclasses
        why = (str(error).splitlines() or [""])[0]
        mend = "the same command continues from the last saved state"
        raise ProcessError("lost the other processes of this run", why=why, mend=mend) from error
