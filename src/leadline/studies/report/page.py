"""The page: its order is the reader's, from the decision to the small print."""

from __future__ import annotations

import platform
import shlex
from datetime import datetime
from importlib import resources
from typing import TYPE_CHECKING

from leadline import __version__
from leadline.output import write_atomic
from leadline.studies.caution import pictures
from leadline.studies.matrix import is_matrix
from leadline.studies.measurement import Status
from leadline.studies.recommend import NAMES
from leadline.studies.report.candidates import Candidate, candidates, shared_notes
from leadline.studies.report.facts import honest_limits, not_measured, parity, what_was_run
from leadline.studies.report.gallery import gallery
from leadline.studies.report.matrix import matrix_section
from leadline.studies.report.numbers import change, interval, megabytes, milliseconds, number, text, times
from leadline.studies.report.plots import tradeoff_plots
from leadline.studies.report.table import candidate_table

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from leadline.studies.measurement import Latency
    from leadline.studies.recommend import Limits, Recommendation
    from leadline.studies.study import Outcome

NAME = "report.html"


def write_report(
    outcome: Outcome, advice: Recommendation, limits: Limits, name: str = NAME, command: str = "leadline optimize"
) -> Path:
    """Write the report of a study as one file that needs no other and no network.

    Args:
        outcome: the finished study.
        advice: what was recommended.
        limits: the user's.
        name: of the file.
        command: that the reader would type again, which heads the page.

    Returns:
        The file, in the study's folder.

    Raises:
        OutputError: it cannot be written; an older report is then intact.
    """
    path = outcome.folder / name
    write_atomic(path, _page(outcome, advice, limits, command).encode())
    return path


def _page(outcome: Outcome, advice: Recommendation, limits: Limits, command: str) -> str:
    found = candidates(outcome, advice)
    title = f"{outcome.study.model}: what to ship"
    body = "".join(
        (
            _header(outcome, command),
            _recommendation(outcome, advice, limits, found),
            _section("candidates-title", "Candidates", _candidates(outcome, found)),
            *(
                [_section("matrix", "Resolution and batch", matrix_section(outcome, limits))]
                if is_matrix(outcome.rows)
                else []
            ),
            _section("tradeoffs", "Accuracy against speed and size", _plots(found, limits)),
            _section("pictures", "What it looks like", gallery(outcome, _seen_once(found))),
            _section("run", "What was run", what_was_run(outcome)),
            _section("not-measured", "Not measured", not_measured(outcome)),
            _section("parity", "Agreement with PyTorch", _PARITY + parity(found)),
            _section("limits", "What these figures do not say", _bullets(honest_limits(found))),
        )
    )
    return (
        '<!DOCTYPE html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        '<meta name="color-scheme" content="light dark">\n'
        f"<title>{text(title)}</title>\n<style>{_asset('style.css')}</style>\n</head>\n<body>\n<main>{body}</main>\n"
        f"<footer>Made by leadline {text(__version__)}.</footer>\n"
        f"<script>{_asset('sort.js')}</script>\n</body>\n</html>\n"
    )


def _seen_once(found: Sequence[Candidate]) -> list[Candidate]:
    """One of the candidates that differ in the batch alone: their maps are the same; the recommended one if it is."""
    seen: dict[str, Candidate] = {}
    for candidate in found:
        held = seen.get(candidate.row.folder)
        if held is None or (candidate.recommended and not held.reference):
            seen[candidate.row.folder] = candidate
    return sorted(seen.values(), key=lambda candidate: candidate.number)


_PARITY = (
    '<p class="quiet">Each exported file was run on check pictures before it was measured, and compared with PyTorch '
    "FP32 of the same weights, in the output’s own unit.</p>"
)


def _asset(name: str) -> str:
    return resources.files(__package__).joinpath(name).read_text(encoding="utf-8")


def _section(key: str, title: str, body: str) -> str:
    return f'<section aria-labelledby="{key}"><h2 id="{key}">{title}</h2>{body}</section>\n'


def _bullets(items: Sequence[str]) -> str:
    return '<ul class="limits">' + "".join(f"<li>{item}</li>" for item in items) + "</ul>"


def _header(outcome: Outcome, command: str) -> str:
    machine, study = outcome.reference.machine, outcome.study
    host = next(
        (machine[key] for key in ("cpu", "processor", "name", "machine") if machine.get(key)), platform.machine()
    )
    now = datetime.now().astimezone()
    parts = (
        ("data", text(study.data + (f", {study.split}" if study.split else ""))),
        ("date", f'<time datetime="{now.isoformat(timespec="minutes")}">{now.day} {now:%B %Y, %H:%M}</time>'),
        ("machine", text(host)),
    )
    facts = "".join(f"<div><dt>{name}</dt><dd>{value}</dd></div>" for name, value in parts)
    kicker = text(f"{command}, on {outcome.reference.on}" if outcome.reference.on else command)
    return f"<header><p class=kicker>{kicker}</p><h1>{text(study.model)}</h1><dl>{facts}</dl></header>\n"


def _recommendation(outcome: Outcome, advice: Recommendation, limits: Limits, found: Sequence[Candidate]) -> str:
    kept = f'<p class="quiet">Limits: {_limits(outcome, limits)}.</p>'
    if advice.caution:
        kept = f'<p class="caution">{text(advice.caution)}</p>{kept}'
    chosen = next((candidate for candidate in found if candidate.recommended), None)
    if chosen is None and all(candidate.reference for candidate in found):
        why = '<p><a href="#not-measured">The reasons are below</a>, each with what mends it.</p>'
        inside = f"<h2 id=advice>✕ Nothing to recommend</h2><p class=lead>{text(advice.sentence)}</p>{why}"
        return f'<section class="card bad" aria-labelledby="advice">{inside}</section>\n'
    if chosen is None:
        mend = (
            "<p>The table below shows what each candidate would cost. To get a recommendation, allow more "
            "(<code>--max-drop</code>, <code>--max-ms</code>, <code>--max-mb</code>), offer smaller inputs "
            "(<code>--size</code>), or start from a smaller model. Run it again with the same <code>--out</code>: "
            "what is measured is kept.</p>"
        )
        inside = f"<h2 id=advice>✕ Nothing to recommend</h2><p class=lead>{text(advice.sentence)}</p>{mend}{kept}"
        return f'<section class="card bad" aria-labelledby="advice">{inside}</section>\n'
    bundle = str(outcome.folder / chosen.row.bundle)
    command = f"leadline predict photo.jpg --model {shlex.quote(bundle)}"
    inside = (
        f"<p class=over>★ Recommended</p><h2 id=advice>{text(chosen.row.name)}</h2>{_tiles(chosen, outcome)}"
        f"<p class=lead>{text(advice.sentence)}</p>{kept}"
        f"<dl class=use><div><dt>Bundle</dt><dd><code>{text(bundle)}</code></dd></div>"
        f"<div><dt>Run it</dt><dd><code>{text(command)}</code></dd></div></dl>"
    )
    return f'<section class="card good" aria-labelledby="advice">{inside}</section>\n'


def _limits(outcome: Outcome, limits: Limits) -> str:
    accuracy = outcome.reference.accuracy
    metric = text(NAMES.get(accuracy.primary, accuracy.primary)) if accuracy else "the primary metric"
    parts = [f"{metric} may drop by {limits.max_drop:g} against the reference"]
    per_run = " per run" if is_matrix(outcome.rows) else ""
    parts += [f"at most {limits.max_ms:g} ms{per_run}"] if limits.max_ms is not None else []
    parts += [f"at most {limits.max_mb:g} MB"] if limits.max_mb is not None else []
    return "; ".join(parts)


def _tiles(chosen: Candidate, outcome: Outcome) -> str:
    primary, latency = chosen.accuracy.primary, chosen.latency
    score, moved = chosen.accuracy.metrics[primary], chosen.accuracy.change.get(primary)
    speed = 1 / latency.ratio if latency.ratio > 0 else float("inf")
    paired = f"{change(moved.value)} {interval(moved, signed=True)} against the reference" if moved else "the reference"
    alone = outcome.reference.latency
    row = f"; its own row has {milliseconds(alone.p50)} ms" if alone else ""  # as the table: one number, one place
    each = ", per picture" if latency.batch > 1 else ""
    compared = "is the reference" if chosen.reference else f"as fast as the reference in the same rounds{each}{row}"
    tiles = (
        (
            f"{milliseconds(latency.per_picture)} <small>ms</small>",
            f"per picture, median; {_whole(latency)} within {milliseconds(latency.p95)} ms",
        ),
        (times(speed), compared),
        (number(score.value), f"{text(NAMES.get(primary, primary))}, 95 % {interval(score)}<br>{paired}"),
        (f"{megabytes(chosen.row.size_mb)} <small>MB</small>", "on disk"),
    )
    return (
        '<ul class="tiles">'
        + "".join(f"<li><strong>{big}</strong><span>{small}</span></li>" for big, small in tiles)
        + "</ul>"
    )


def _whole(latency: Latency) -> str:
    """What the 95 % are of, after what a run of several pictures takes."""
    if latency.batch == 1:
        return "95 %"
    return f"a run of {latency.batch} pictures in {milliseconds(latency.p50)} ms, 95 % of the runs"


def _candidates(outcome: Outcome, found: Sequence[Candidate]) -> str:
    if not found:
        return '<p>Nothing could be measured; <a href="#not-measured">the reasons are below</a>.</p>'
    absent = sum(row.status is not Status.MEASURED for row in outcome.rows)
    more = ""
    if absent:
        noun = "candidate has" if absent == 1 else "candidates have"
        more = f'<p class="quiet">{absent} further {noun} no figures: <a href="#not-measured">see why</a>.</p>'
    assert outcome.reference.accuracy
    accuracy = outcome.reference.accuracy
    facts = [f"Protocol {accuracy.protocol} on {pictures(accuracy.scored)} of {accuracy.data}"]
    lead = "".join(f"<p>{text(notice)}</p>" for notice in outcome.notices)
    lead += f"<p>{text('; '.join(facts + shared_notes(outcome.rows)))}.</p>"
    return lead + candidate_table(found) + more


def _plots(found: Sequence[Candidate], limits: Limits) -> str:
    plots = tradeoff_plots(found, limits)
    if not plots:
        return '<p class="quiet">There is nothing to draw.</p>'
    figures = "".join(
        f'<figure><div class="drawing wide">{wide}</div><div class="drawing narrow">{narrow}</div>'
        f"<figcaption>{text(caption)}</figcaption></figure>"
        for wide, narrow, caption in plots
    )
    return f'<p class="quiet">Numbers are those of the table.</p><div class="plots">{figures}</div>'
