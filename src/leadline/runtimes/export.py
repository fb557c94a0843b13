"""Export: from a network to a bundle that was proven against PyTorch before anybody can use it."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from leadline.bundle import EXAMPLE, Bundle, load_bundle, write_bundle
from leadline.contract import Contract
from leadline.errors import ContractError
from leadline.output import atomic_folder, check_writable
from leadline.runtimes.base import Exportable, ExportOptions, Runtime, SessionOptions, required
from leadline.runtimes.calibration import calibration_inputs
from leadline.runtimes.example import example_code
from leadline.runtimes.parity import check_parity, measure_parity
from leadline.runtimes.torch_eager import open_model

if TYPE_CHECKING:
    from collections.abc import Sequence

    import numpy as np
    from numpy.typing import NDArray

    Inputs = Sequence[NDArray[np.float32]]

PARITY_PICTURES = 4
PARITY_SEED = 500_000  # far from the seeds of rendered calibration pictures


def export_bundle(
    source: Exportable,
    runtime: str,
    options: ExportOptions,
    out: Path,
    *,
    pictures: str | Path | None = None,
) -> Bundle:
    """Export, run the result, compare it with PyTorch, and only then put it at `out`.

    Args:
        source: the network, as `leadline.reference.load_model` returns it.
        runtime: name of the engine.
        options: precision, size, calibration inputs and so on.
        out: folder of the bundle; replaced if it is a bundle already.
        pictures: data set or folder for the parity check; None takes rendered ones.

    Returns:
        The bundle; `details["parity"]` holds the figures, `details["precision_ran"]` what the engine computed in. An
        engine that cannot run on this machine leaves no parity but a note that says so.

    Raises:
        ParityError: the file differs from PyTorch by more than its precision may; `out` is left as it was.
        UnavailableError: the engine or an operator is missing.
        ConfigError: options that contradict each other or the network.
        NumericalError: the engine returns NaN or infinity.
        OutputError: `out` cannot be written.
    """
    adapter = required(runtime)
    check_writable(out.parent)
    with atomic_folder(out, replaces="bundle") as folder:
        made = adapter.export(source, options, folder)
        if code := example_code(adapter, made):
            (folder / EXAMPLE).write_text(code, encoding="utf-8")
        unproven = adapter.availability().export_only
        if unproven:
            seen = {"precision_ran": "unknown", "notes": [f"{adapter.name} itself was not run: {unproven}"]}
        else:
            seen = _compared(adapter, made, source, options, pictures)
        write_bundle(
            folder,
            runtime=made.runtime,
            precision=made.precision,
            contract=made.contract,
            size=made.size,
            dynamic=made.dynamic,
            lineage=[*made.lineage, export_step(made, options)],
            details=made.details | seen,
        )
    return load_bundle(out)


def _compared(
    adapter: Runtime, made: Bundle, source: Exportable, options: ExportOptions, pictures: str | Path | None
) -> dict[str, Any]:
    """What running the files showed: the arithmetic, agreement with PyTorch at each size, notes of the engine."""
    session = adapter.open(made, SessionOptions())
    reference = open_model(source.model, source.contract)
    figures: dict[str, Any] = {}
    try:
        for size in _sizes(made.contract):
            inputs = calibration_inputs(pictures, source.contract, size, PARITY_PICTURES, seed=PARITY_SEED)
            parity = measure_parity(session, reference, inputs)
            check_parity(parity, options.precision, name=f"{source.name} {adapter.name} {options.precision}")
            figures[f"{size[0]}x{size[1]}"] = parity.as_dict()
        first = next(iter(figures.values()))
        seen = {"precision_ran": session.precision_ran, "parity": first}
        if len(figures) > 1:
            seen["parity_by_size"] = figures
        if session.notes:
            seen["notes"] = session.notes
    finally:
        session.close()
    return seen


def _sizes(contract: Contract) -> list[tuple[int, int]]:
    """The input's own size and, where it is open, a second one: a baked size would show there (pitfall 2)."""
    spec = contract.input
    sizes = [(spec.height, spec.width)]
    if spec.dynamic:
        for change in (1, -1, 2):
            other = (spec.height + change * spec.multiple_of, spec.width + 2 * change * spec.multiple_of)
            try:
                sizes.append(contract.checked_size(other))
                break
            except ContractError:
                continue
    return sizes


def export_step(made: Bundle, options: ExportOptions) -> dict[str, Any]:
    """What a bundle's lineage says of its export: what was asked for, or what the engine did instead.

    Args:
        made: by the engine, whose details count where they say something else (a quantiser of its own, say).
        options: of the export.
    """
    step: dict[str, Any] = {
        "step": "export",
        "runtime": made.runtime,
        "precision": made.precision,
        "size": list(made.size),
        "dynamic": options.dynamic,
    }
    if options.calibration:
        method = made.details.get("calibration", options.method)
        step |= {"calibration": method, "calibration_pictures": len(options.calibration)}
    if options.precision.startswith("int8"):
        usual = ExportOptions()
        asked = ("percentile", "per_channel", "symmetric", "equalise", "bias_correction", "smooth")
        done = {key: made.details.get(key, getattr(options, key)) for key in asked}
        step |= {key: value for key, value in done.items() if value != getattr(usual, key)}
        step |= {"exclude": list(options.exclude)} if options.exclude else {}
    return step
