"""What was run: model, data, protocol, machine, what has no figures, and what the figures do not say."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Any

from leadline import __version__
from leadline.contract import Contract
from leadline.depth import Kind
from leadline.errors import ConfigError, ContractError
from leadline.evaluation.bootstrap import FEW, RESAMPLES
from leadline.evaluation.protocols import Protocol, get_protocol
from leadline.runtimes.base import runtime
from leadline.studies.measurement import Status
from leadline.studies.recommend import NAMES
from leadline.studies.report.numbers import NONE, count, plain, text
from leadline.studies.report.panel import ALIGNMENTS

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from leadline.studies.report.candidates import Candidate
    from leadline.studies.study import Outcome

KINDS = {
    Kind.METRIC_DEPTH: "metric depth, metres",
    Kind.RELATIVE_DEPTH: "relative depth: scale and shift unknown",
    Kind.RELATIVE_DISPARITY: "relative disparity: inverse depth, scale and shift unknown",
    Kind.SCALED_DISPARITY: "scaled disparity: inverse depth, scale unknown",
}


def what_was_run(outcome: Outcome) -> str:
    """Model, data, protocol, timing and machine as lists of facts."""
    contract = _contract(outcome)
    groups = (
        ("Model", _model(outcome, contract)),
        ("Data and protocol", _protocol(outcome, contract)),
        ("Timing", _timing(outcome)),
        ("Machine", _machine(outcome.reference.machine)),
        ("Versions", _versions(outcome)),
    )
    return (
        '<div class="facts">'
        + "".join(f"<section><h3>{n}</h3>{_list(facts)}</section>" for n, facts in groups)
        + "</div>"
    )


def _contract(outcome: Outcome) -> Contract | None:
    try:
        return Contract.load(outcome.folder / outcome.reference.bundle / "contract.json")
    except ContractError:
        return None


def _model(outcome: Outcome, contract: Contract | None) -> list[tuple[str, str]]:
    facts = [("reference", text(outcome.study.model))]
    if contract is not None:
        side = contract.input
        facts += [
            ("name", text(contract.name)),
            ("input", f"{side.height} × {side.width} (height × width), {text(side.resize.replace('_', ' '))}"),
            ("output", KINDS[contract.output.kind]),
            ("licence", text(contract.licence)),
            ("trained on", plain(contract.training_data)),
            ("origin", text(contract.provenance) or NONE),
        ]
    facts.append(("parameters", count(outcome.reference.parameters)))
    sizes = {(row.height, row.width): row.macs for row in outcome.rows}
    facts += [(f"MACs at {h} × {w}", count(macs)) for (h, w), macs in sizes.items()]
    return facts


def _protocol(outcome: Outcome, contract: Contract | None) -> list[tuple[str, str]]:
    study, accuracy = outcome.study, outcome.reference.accuracy
    facts = [("data", text(study.data)), ("split", text(study.split or "the data set’s default"))]
    if accuracy is not None:
        pictures = f"{accuracy.scored} scored"
        for number, words in ((accuracy.unmeasured, "without ground truth"), (accuracy.failed, "failed")):
            pictures += f", {number} {words}" if number else ""
        metric = text(NAMES.get(accuracy.primary, accuracy.primary))
        facts += [("pictures", pictures), ("protocol", text(accuracy.protocol)), ("ranked by", metric)]
    try:
        protocol = get_protocol(study.protocol)
    except ConfigError:
        return facts
    facts.append(("which means", text(meaning(protocol))))
    if contract is not None and contract.output.kind in protocol.kinds:
        facts.append(("alignment", text(ALIGNMENTS[protocol.alignment_for(contract.output.kind)])))
    calibrated = text(study.calibration or "rendered scenes")
    facts.append(("static INT8", f"calibrated on {study.calibration_count} pictures of {calibrated}"))
    return facts


def meaning(protocol: Protocol) -> str:
    """A protocol in one sentence."""
    if protocol.truth == "model":
        return (
            "each candidate’s map is compared with the uncompressed model’s; agreement is the share of pixels within "
            "5 % of that map’s range. It says what compression changed, not whether the model is right."
        )
    where = "ground truth" if protocol.mask == "truth" else "ground truth or a positive prediction"
    text_ = f"pixels with {where}"
    if protocol.capped:
        cap = f"{protocol.max_depth:g} m" if protocol.max_depth is not None else "the data set’s largest depth"
        text_ += f" between {protocol.min_depth:g} m and {cap} count"
    else:
        text_ += " count, without a cap"
    if protocol.crop is not None:
        text_ += ", inside the protocol’s crop"
    if protocol.preparation != "none":
        text_ += f", after the geometry of {protocol.preparation}"
    how = "figures per picture, then their mean" if protocol.averaging == "per-image" else "figures over all pixels"
    return f"{text_}; {how}. δ1 is the share of pixels within a factor of 1.25 of the truth."


def _timing(outcome: Outcome) -> list[tuple[str, str]]:
    latency = outcome.reference.latency
    facts = [
        ("method", f"{_at_once(outcome)}, each candidate in turn with the reference; medians"),
        ("threads", str(outcome.study.threads) if outcome.study.threads else "the engine’s choice"),
    ]
    if latency is not None:
        facts += [("timed runs", str(latency.runs)), ("warm-up runs", str(latency.warmup))]
    facts.append(("peak memory", "of a process that loads and runs the bundle alone"))
    return facts


def _at_once(outcome: Outcome) -> str:
    batches = sorted({row.batch for row in outcome.rows})
    if batches == [1]:
        return "one picture at a time (batch 1)"
    return f"batches of {', '.join(map(str, batches))} pictures (the reference takes one)"


def _machine(machine: dict[str, Any]) -> list[tuple[str, str]]:
    found = [(text(key.replace("_", " ")), plain(value)) for key, value in machine.items() if key != "versions"]
    return found or [("fingerprint", NONE)]


def _versions(outcome: Outcome) -> list[tuple[str, str]]:
    facts = [("leadline", text(__version__))]
    stored = outcome.reference.machine.get("versions")
    if isinstance(stored, dict):
        return facts + [(text(name), plain(version)) for name, version in stored.items() if name != "leadline"]
    for name in dict.fromkeys(row.runtime for row in outcome.rows):
        try:
            facts.append((text(name), text(runtime(name).availability().version or "not installed")))
        except ConfigError:
            facts.append((text(name), NONE))
    return facts


def not_measured(outcome: Outcome) -> str:
    """Rows without figures and why; empty where there are none."""
    rows = [row for row in outcome.rows if row.status is not Status.MEASURED]
    if not rows:
        return '<p class="quiet">Every candidate was measured.</p>'
    mark = {
        Status.SKIPPED: '<span class="badge">○ skipped</span>',
        Status.FAILED: '<span class="badge bad">✕ failed</span>',
    }
    body = "".join(
        f'<tr><th scope="row">{text(row.name)}</th><td class="left">{mark[row.status]}</td>'
        f'<td class="left wide">{_with_commands(row.reason)}</td></tr>'
        for row in rows
    )
    return _table("Not measured", ("candidate", "state", "reason and remedy"), body, "plain")


def _with_commands(reason: str) -> str:
    return re.sub(r"(pip install [\w\[\]=.,&;#\- ]*[\w\]])", r"<code>\1</code>", text(reason))


def parity(found: Sequence[Candidate]) -> str:
    """Agreement of each exported file with PyTorch."""
    names = list(dict.fromkeys(name for candidate in found for name in candidate.row.parity))
    if not names:
        return '<p class="quiet">No parity figures were kept.</p>'
    body = "".join(
        f'<tr><th scope="row">{candidate.number} {text(candidate.row.name)}</th>'
        + "".join(f"<td>{_short(candidate.row.parity.get(name))}</td>" for name in names)
        + "</tr>"
        for candidate in found
    )
    return _table("Parity with PyTorch", ("candidate", *(name.replace("_", " ") for name in names)), body, "plain")


def _short(value: Any) -> str:
    return text(f"{value:.4g}") if isinstance(value, float) else plain(value)


def honest_limits(found: Sequence[Candidate]) -> list[str]:
    """What a reader must not conclude; HTML text."""
    n = found[0].accuracy.metrics[found[0].accuracy.primary].n if found else 0
    few = f" {n} pictures are few: small differences may turn round on others." if n < FEW else ""
    return [
        f"Intervals are 95 % percentile bootstrap intervals over {n} pictures ({RESAMPLES:,} draws). They cover the "
        f"choice of pictures, not another camera, place or season.{few}",
        "The paired change compares the same pictures with the reference and is sharper than the two intervals "
        "side by side.",
        "Times, memory and which precision is fastest hold for this machine, these threads and these versions. On "
        "another processor INT8 may gain or lose: run the study there.",
        "Latency is the network alone; a whole application adds the columns before and after, capture and display.",
        "A drop is judged by its point estimate; whether its interval stays inside the limit is said with the "
        "recommendation.",
    ]


def _list(facts: Iterable[tuple[str, str]]) -> str:
    return "<dl>" + "".join(f"<div><dt>{name}</dt><dd>{value}</dd></div>" for name, value in facts) + "</dl>"


def _table(title: str, heads: Sequence[str], body: str, kind: str) -> str:
    head = "".join(
        f'<th scope="col"{" class=left" if i == 0 else ""}>{text(name)}</th>' for i, name in enumerate(heads)
    )
    return (
        f'<div class="scroll" role="region" aria-label="{title}" tabindex="0"><table class="{kind}">'
        f'<caption class="hidden">{title}</caption><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table></div>'
    )
