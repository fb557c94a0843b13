"""Which protocol a data set allows, and which rendered scenes suit a model: settled before anything is exported."""

from __future__ import annotations

from typing import TYPE_CHECKING

from leadline.errors import DataError, LeadlineError

if TYPE_CHECKING:
    from leadline.contract import Contract
    from leadline.data.dataset import Dataset

DEFAULT, WITHOUT_TRUTH = "plain", "fidelity"
LOOKED_AT = 8  # pictures, spread evenly over the data set


def choose_protocol(data: str, split: str | None, wanted: str | None) -> tuple[str, str]:
    """The protocol of a study, settled before anything is exported.

    Args:
        data: data set reference.
        split: of it.
        wanted: by the user; None takes `plain`, or `fidelity` where the data set has nothing to compare with.

    Returns:
        The protocol's name, and a notice in words where it was not the user's choice or the default.

    Raises:
        DataError: the protocol asked for needs ground truth and there is none, or the data set cannot be opened.
        KindError: the protocol asked for cannot use the data set's kind of depth.
        ConfigError: unknown protocol.
    """
    from leadline.data.dataset import open_dataset
    from leadline.depth import Kind
    from leadline.evaluation.protocols import get_protocol
    from leadline.evaluation.scoring import check_truth

    protocol = get_protocol(wanted or DEFAULT)
    dataset = open_dataset(data, split)
    if protocol.truth == "model":
        return protocol.label, ""
    if not _has_depth(dataset):
        missing = "the pictures have no ground truth"
    elif dataset.kind is not Kind.METRIC_DEPTH:
        missing = f"the data set's depth is {dataset.kind.value}, not metric"
    else:
        return protocol.label, ""
    if wanted is not None:
        check_truth(dataset.kind, protocol)
        mend = "leave --protocol out, or use --protocol fidelity: agreement with the uncompressed model"
        raise DataError(f"protocol {protocol.label} cannot be used", where=data, why=missing, mend=mend)
    says = "protocol fidelity, agreement with the uncompressed model, and says nothing of whether that model is right"
    return WITHOUT_TRUTH, f"{missing[0].upper()}{missing[1:]}: accuracy here is {says}."


def choose_scenes(data: str, model: str) -> tuple[str, str]:
    """Rendered rooms alone for a model whose metres end before a street does; any other data set is left as it is.

    Args:
        data: data set reference; only a bare `rendered` leaves the choice open.
        model: reference.

    Returns:
        The data set's reference, and a notice in words where it was changed.

    Raises:
        LeadlineError: the model cannot be opened.
    """
    if data != "rendered":
        return data, ""
    from leadline.reference import load_model

    return scenes_for(load_model(model).contract)


def scenes_for(contract: Contract) -> tuple[str, str]:
    """The rendered data set that suits a network, and a notice in words where it is not all of it."""
    from leadline.data.rendered import MAX_DEPTH

    limit = contract.output.maximum
    if limit is None or limit >= MAX_DEPTH["street"]:
        return "rendered", ""
    return "rendered:room", f"Rooms alone are drawn, no streets: this model's metres end at {limit:g} m."


def _has_depth(dataset: Dataset) -> bool:
    total = len(dataset)
    for index in dict.fromkeys(done * total // LOOKED_AT for done in range(LOOKED_AT)):
        try:
            if dataset[index].depth is not None:
                return True
        except LeadlineError:  # a picture that cannot be read is counted later, and is no sign of missing depth
            return True
    return False
