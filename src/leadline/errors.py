"""The errors that Leadline raises on purpose: each says what, where, why and how to mend it."""

from __future__ import annotations

import difflib
from collections.abc import Iterable
from pathlib import Path


class LeadlineError(Exception):
    """A fault that the user can mend; the command prints it on one line and exits with `exit_status`.

    Args:
        what: what failed, a short clause.
        where: the path, flag, key or tensor concerned.
        why: the cause.
        mend: what the user can do about it.
    """

    exit_status: int = 2

    def __init__(self, what: str, *, where: object = None, why: str = "", mend: str = "") -> None:
        self.what, self.where, self.why, self.mend = what, where, why, mend
        place = f" {str(where)!r}" if isinstance(where, str | Path) else f" {where}" if where is not None else ""
        text = f"{what}{place}"
        if why:
            text += f": {why}"
        if mend:
            text += f". {mend[0].upper()}{mend[1:]}"
        super().__init__(" ".join(text.split()))


class ImageReadError(LeadlineError):
    """A picture or depth file that cannot be read completely and safely."""


class ForeignFormatError(ImageReadError):
    """Content that is no picture of a format that is read."""


class DataError(LeadlineError):
    """A data set, sample, calibration or unit that contradicts itself."""


class KindError(LeadlineError):
    """Depth and disparity, or metric and relative values, were about to be mixed."""


class ContractError(LeadlineError):
    """A picture or tensor that a model's contract does not allow, or a contract that is not valid."""


class CheckpointError(LeadlineError):
    """A checkpoint that is incomplete, damaged, unsafe or made for another architecture."""


class BundleError(LeadlineError):
    """A bundle that is incomplete, damaged or unsafe."""


class ModelReferenceError(LeadlineError):
    """A model reference that names nothing."""


class UnavailableError(LeadlineError):
    """A runtime, operator or optional package that is missing here; the message says how to install it."""


class ParityError(LeadlineError):
    """An exported file whose output differs from PyTorch by more than its precision allows."""


class NumericalError(LeadlineError):
    """NaN or infinity where a finite number is needed; the message names the engine or batch."""

    exit_status = 1


class ConfigError(LeadlineError):
    """A configuration, recipe or option with an unknown key or a wrong value."""


class OutputError(LeadlineError):
    """An output place that is read-only, full, or in use by another run."""


class ProcessError(LeadlineError):
    """Another process of the run ended."""

    exit_status = 1


MOST_NAMED = 12  # words of a list that a message of one line can hold


def closest(word: str, known: Iterable[str]) -> str:
    """`did you mean 'x'?`, or the list of what is known where nothing is close."""
    options = sorted(known)
    near = difflib.get_close_matches(word, options, n=1, cutoff=0.6)
    near = near or [option for option in options if word and option.startswith(word)][:1]
    if near:
        return f"did you mean {near[0]!r}?"
    more = f", and {len(options) - MOST_NAMED} more" if len(options) > MOST_NAMED else ""
    return f"known: {', '.join(options[:MOST_NAMED])}{more}"


def one_line(error: BaseException, line: int = 0) -> str:
    """What an error of another library says in one line, the first unless told otherwise; its class if it is silent."""
    # A missing key's own text is the key in quotes.
    text = str(error.args[0]) if isinstance(error, KeyError) and error.args else str(error)
    lines = [part.strip() for part in text.splitlines() if part.strip()]
    return lines[line] if lines else type(error).__name__


def sides(shape: Iterable[object]) -> str:
    """The shape of a tensor as people write it: 1 x 3 x 224 x 288."""
    return " x ".join(str(side) for side in shape)
