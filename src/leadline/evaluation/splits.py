"""Which part of a data set counts where none is named: the test pictures, never mixed with those of training."""

from __future__ import annotations

from leadline.data.dataset import open_dataset, part_of
from leadline.errors import DataError, LeadlineError

TEST = "test"


def choose_split(reference: str, split: str | None) -> tuple[str | None, str]:
    """The split to measure on, settled before anything runs.

    Args:
        reference: data set reference.
        split: named by the user; None takes `test` where the data set's own default would mix it with others.

    Returns:
        The split, and a note in words where it was chosen here.
    """
    if split is not None or part_of(reference)[1] is not None:
        return split, ""
    try:
        test, every = (open_dataset(reference, name, skip_bad=True) for name in (TEST, None))
        names = set(test.names())
        mixed = 0 < len(names) < len(every) and names < set(every.names())
        if not mixed or test[0].depth is None:  # some publish tests without depth
            return None, ""
    except DataError:  # no such split, or a fault that is told where the data set is opened for good
        return None, ""
    except LeadlineError:  # a damaged picture, which is counted like any other
        pass
    note = f"split {TEST} ({len(test)} of {len(every)} pictures): the others may be of training; --split names another"
    return TEST, note
