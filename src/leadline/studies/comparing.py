"""Two stores compared row by row: two machines, or two versions; what became worse, in words."""

from __future__ import annotations

import json
import math
from dataclasses import asdict, dataclass, field
from typing import TYPE_CHECKING, Any

from leadline.errors import ConfigError, DataError
from leadline.evaluation.metrics import HIGHER_IS_BETTER
from leadline.studies.measurement import Figure, Status
from leadline.studies.recommend import NAMES, ends
from leadline.studies.slower import By, Spread, Verdict, is_reference, judge, same_hardware

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    from leadline.studies.measurement import Measurement
    from leadline.studies.store import Stored

MAX_DROP, MAX_LARGER = 0.005, 1.1
SOFTWARE = ("system", "python", "versions")


@dataclass(frozen=True)
class Thresholds:
    """From where on something is a regression.

    Args:
        max_slower: quotient of the times, second over first; None judges 1.1 on one machine and nothing across two.
        max_drop: loss of the primary metric.
        max_larger: quotient of file sizes and of peak memory.
        by: `ratio` judges times by their share of each store's own reference, which took turns with them, `ms` by
            themselves; None takes the ratio on one machine and the times across two.
        allow_missing: a row that the first measured and the second has not is no regression.
        across_models: compare stores of two models row by row.
    """

    max_slower: float | None = None
    max_drop: float = MAX_DROP
    max_larger: float = MAX_LARGER
    by: By | None = None
    allow_missing: bool = False
    across_models: bool = False

    def check(self) -> None:
        """Refuse what nothing could keep, or what everything would.

        Raises:
            ConfigError: a quotient that is not above 0, a drop below 0, or one that is no finite number.
        """
        for flag, value, least in (
            ("--max-slower", self.max_slower, "above 0"),
            ("--max-larger", self.max_larger, "above 0"),
            ("--max-drop", self.max_drop, "at least 0"),
        ):
            if value is None or (math.isfinite(value) and (value > 0 or (value == 0 and least == "at least 0"))):
                continue
            raise ConfigError(f"bad threshold {flag}", where=value, why=f"it must be a finite number {least}")


@dataclass(frozen=True)
class Pair:
    """A row of the first store and its counterpart in the second.

    Args:
        name: of the candidate.
        a: the first's row.
        b: the second's row.
        change: second minus first of the primary metric, paired over the pictures that both scored; None where there
            are none, or the protocols differ.
        times: of the second over the first's, and which were judged; None where either has none.
        memory: quotient of peak memories.
        size: quotient of sizes on disk.
        regressions: what became worse than the thresholds allow, in words.
        doubts: what passes a threshold within its spread, and what cannot be compared.
    """

    name: str
    a: Measurement
    b: Measurement
    change: Figure | None = None
    times: Verdict | None = None
    memory: float | None = None
    size: float | None = None
    regressions: tuple[str, ...] = ()
    doubts: tuple[str, ...] = ()

    @property
    def slower(self) -> Spread | None:
        """Time of a run of the second over the first's."""
        return self.times.slower if self.times else None

    @property
    def relative(self) -> Spread | None:
        """The same of the times as multiples of each store's own reference."""
        return self.times.relative if self.times else None


@dataclass(frozen=True)
class Comparison:
    """What two stores have to say about each other.

    Args:
        pairs: rows of both.
        only_a: names of rows that the first alone has.
        only_b: names of rows that the second alone has.
        notices: machines and versions that differ, and what else the reader must know.
        missing: names of rows that the first measured and the second lacks, where that counts.
    """

    pairs: list[Pair]
    only_a: list[str]
    only_b: list[str]
    notices: list[str] = field(default_factory=list)
    missing: list[str] = field(default_factory=list)

    @property
    def regressions(self) -> list[str]:
        """Every regression, with its candidate's name."""
        gone = [f"{name}: measured in the first, missing in the second" for name in self.missing]
        return [f"{pair.name}: {what}" for pair in self.pairs for what in pair.regressions] + gone

    @property
    def judged_by(self) -> str:
        """By what the times were judged, in a sentence."""
        ways = {pair.times.by for pair in self.pairs if pair.times}
        said = [words for by, words in JUDGED.items() if by in ways]
        return f"Times were judged by {', others by '.join(said)}." if said else "Times were not judged."

    def as_dict(self) -> dict[str, Any]:
        """Plain values, ready for JSON."""
        pairs = []
        for pair in self.pairs:
            values: dict[str, Any] = {"name": pair.name, "a": pair.a.key, "b": pair.b.key}
            values |= {"change": pair.change.model_dump() if pair.change else None}
            for name in ("slower", "relative"):
                spread = getattr(pair, name)
                values |= {name: asdict(spread) if spread else None}
            values |= {"judged_by": pair.times.by if pair.times else None, "memory": pair.memory, "size": pair.size}
            pairs.append(values | {"regressions": list(pair.regressions), "doubts": list(pair.doubts)})
        return {
            "regressions": self.regressions,
            "pairs": pairs,
            "only_a": self.only_a,
            "only_b": self.only_b,
            "missing": self.missing,
            "judged_by": self.judged_by,
            "notices": self.notices,
        }


JUDGED: dict[By, str] = {
    "ratio": "the ratio to each study's own reference, which took turns with the candidate",
    "ms": "the time of a run",
}


def compare_stores(a: Stored, b: Stored, thresholds: Thresholds | None = None) -> Comparison:
    """Pair the rows of two stores by model, what was done to it, engine, precision, size, batch and device.

    Args:
        a: the first: the older version, or the other machine.
        b: the second, which may have become worse.
        thresholds: from where on; None takes the defaults.

    Raises:
        DataError: a store without figures, of another model, or without a single row in common with the other.
        ConfigError: a threshold that nothing could keep.
    """
    bounds = thresholds or Thresholds()
    bounds.check()
    for store in (a, b):
        if not any(row.status is Status.MEASURED for row in store.rows):
            raise DataError("nothing to compare", where=store.path, why="the store holds no measured row")
    models = [{row.model for row in store.rows} for store in (a, b)]
    renamed = len(models[0]) == len(models[1]) == 1 and models[0] != models[1]
    names = [next(iter(sorted(each))) for each in models]
    if renamed and not bounds.across_models:
        why = f"the first is of {names[0]}, this one of {names[1]}"
        mend = "--across-models compares them row by row all the same"
        raise DataError("a study of another model", where=b.path, why=why, mend=mend)
    machines = [{row.on for row in store.rows} for store in (a, b)]
    apart = max(len(each) for each in machines) > 1
    ours, theirs = (_latest(store.rows, by_model=not renamed, by_machine=apart) for store in (a, b))
    common = [name for name in ours if name in theirs]
    if not common:
        why = f"it has {_few(theirs)}, the first has {_few(ours)}"
        raise DataError("no row in common with the first", where=b.path, why=why)
    notices = [f"Different models: {names[0]} and {names[1]}."] if renamed else []
    notices += _networks([(ours[name], theirs[name]) for name in common])
    notices += _machines(a, b, [ours[name] for name in common], [theirs[name] for name in common])
    held = [_references(rows.values()) for rows in (ours, theirs)]
    one = not (held[0] and held[1]) or held[0] == held[1]
    if not one:
        said = " and ".join(", ".join(sorted(each)) for each in held)
        notices.append(f"Different references: {said}. Ratios to them do not compare.")
    pairs = [_pair(ours[name], theirs[name], a.scores, b.scores, bounds, one_reference=one) for name in common]
    only = [
        [row for name, row in these.items() if name not in others] for these, others in ((ours, theirs), (theirs, ours))
    ]
    gone = [row.name for row in only[0] if row.status is Status.MEASURED and not bounds.allow_missing]
    return Comparison(pairs, [row.name for row in only[0]], [row.name for row in only[1]], notices, gone)


def _references(rows: Iterable[Measurement]) -> set[str]:
    """Names of the rows that the others took turns with."""
    return {row.name for row in rows if row.status is Status.MEASURED and is_reference(row)}


def _networks(pairs: list[tuple[Measurement, Measurement]]) -> list[str]:
    """A notice where what is called the same is another network."""
    for a, b in pairs:
        if a.parameters and b.parameters and a.parameters != b.parameters:
            return [
                f"Different networks: {a.name} has {a.parameters:,} parameters, and in the second {b.parameters:,}."
            ]
    return []


def _latest(rows: Iterable[Measurement], *, by_model: bool, by_machine: bool) -> dict[tuple[object, ...], Measurement]:
    """The last row of each candidate: a store keeps those of earlier versions too."""
    found: dict[tuple[object, ...], Measurement] = {}
    for row in rows:
        name = (
            row.model if by_model else "", row.made, row.runtime, row.device, row.precision, row.height, row.width,
            row.batch, row.on if by_machine else "",
        )  # fmt: skip
        found[name] = row
    return found


def _pair(
    a: Measurement,
    b: Measurement,
    ours: Mapping[str, dict[str, str]],
    theirs: Mapping[str, dict[str, str]],
    bounds: Thresholds,
    *,
    one_reference: bool,
) -> Pair:
    if a.status is not Status.MEASURED or b.status is not Status.MEASURED:
        return _unmeasured(a, b, bounds)
    worse: list[str] = []
    doubts: list[str] = []
    change = _change(a, b, ours.get(a.key, {}), theirs.get(b.key, {}), doubts)
    if change is not None and b.accuracy is not None:
        _judge_accuracy(b.accuracy.primary, change, bounds, worse)
    times = None
    if a.latency is not None and b.latency is not None:
        times = judge(a, b, bounds.max_slower, bounds.by, one_reference=one_reference)
        worse += [times.worse] if times.worse else []
        doubts += [times.doubt] if times.doubt else []
    memory = b.memory_mb / a.memory_mb if a.memory_mb and b.memory_mb else None
    size = b.size_mb / a.size_mb if a.size_mb and b.size_mb else None
    for what, quotient, one, other, unit in (
        ("peak memory", memory, a.memory_mb, b.memory_mb, "MiB"),
        ("size on disk", size, a.size_mb, b.size_mb, "MB"),
    ):
        if quotient is not None and quotient > bounds.max_larger:
            worse.append(
                f"{what} {quotient:.2f} times, {one:.1f} to {other:.1f} {unit} (allowed {bounds.max_larger:g})"
            )
    if a.precision_ran != b.precision_ran:
        doubts.append(f"it ran in {a.precision_ran or 'unknown'} and now in {b.precision_ran or 'unknown'}")
    return Pair(b.name, a, b, change, times, memory, size, tuple(worse), tuple(doubts))


def _unmeasured(a: Measurement, b: Measurement, bounds: Thresholds) -> Pair:
    if a.status is Status.MEASURED and b.status is Status.FAILED:
        return Pair(b.name, a, b, regressions=(f"was measured and now fails: {b.reason}",))
    if a.status is Status.MEASURED and not bounds.allow_missing:
        return Pair(b.name, a, b, regressions=(f"was measured and is now skipped: {b.reason}",))
    states = f"{a.status.value} in the first, {b.status.value} in the second"
    reason = b.reason or a.reason
    return Pair(b.name, a, b, doubts=(f"not compared: {states}{f' ({reason})' if reason else ''}",))


def _change(
    a: Measurement, b: Measurement, ours: dict[str, str], theirs: dict[str, str], doubts: list[str]
) -> Figure | None:
    """Second minus first of the primary metric over the pictures that both scored."""
    from leadline.evaluation.protocols import get_protocol
    from leadline.evaluation.results import Evaluation, paired_differences

    if a.accuracy is None or b.accuracy is None:
        return None
    if a.accuracy.protocol != b.accuracy.protocol:
        doubts.append(f"accuracy not compared: protocol {a.accuracy.protocol} and {b.accuracy.protocol}")
        return None
    rule = get_protocol(a.accuracy.protocol)
    kind = next(iter(sorted(rule.kinds)))  # the figures are there already; the kind decides only how they are called
    first, second = (
        Evaluation(name, kind, row.accuracy.data, rule, [json.loads(text) for text in rows.values()])
        for name, row, rows in (("first", a, ours), ("second", b, theirs))
        if row.accuracy is not None
    )
    try:
        found = paired_differences(second, first, (a.accuracy.primary,))[a.accuracy.primary]
    except DataError:
        why = f"{a.accuracy.data} and {b.accuracy.data} have no scored picture in common"
        doubts.append(f"accuracy not compared: {why}")
        return None
    if found.n < max(a.accuracy.scored, b.accuracy.scored):
        doubts.append(
            f"accuracy over the {found.n} pictures that both scored, of {a.accuracy.scored} and {b.accuracy.scored}"
        )
    return Figure(**asdict(found))


def _judge_accuracy(primary: str, change: Figure, bounds: Thresholds, worse: list[str]) -> None:
    lost = -change.value if primary in HIGHER_IS_BETTER else change.value
    if lost > bounds.max_drop:
        name = NAMES.get(primary, primary)
        text = f"{name} {change.value:+.3f}{ends(change)} on {change.n} pictures (allowed {bounds.max_drop:g})"
        reaches = change.n > 1 and change.low <= 0 <= change.high
        worse.append(text + (", the interval reaches 0: measure on more pictures" if reaches else ""))


def _machines(a: Stored, b: Stored, ours: list[Measurement], theirs: list[Measurement]) -> list[str]:
    """How the machines and the software of two stores differ, in words."""
    first, second = ours[-1], theirs[-1]
    found = []
    if not same_hardware(first, second):
        names = [f"{row.on or path}: {_host(row)}" for row, path in ((first, a.path), (second, b.path))]
        found.append(
            f"Different machines: {'; '.join(names)}. Times are shown; they are judged where --max-slower is given."
        )
    for key in SOFTWARE:
        one, other = first.machine.get(key), second.machine.get(key)
        if isinstance(one, dict) and isinstance(other, dict):
            changed = [f"{name} {one.get(name, 'none')} and {other.get(name, 'none')}" for name in sorted(one | other)
                       if one.get(name) != other.get(name)]  # fmt: skip
            if changed:
                found.append(f"Different versions: {', '.join(changed)}.")
        elif one != other:
            found.append(f"Different {key}: {one} and {other}.")
    return found


def _host(row: Measurement) -> str:
    cpu, cores, memory = (row.machine.get(key, "unknown") for key in ("cpu", "cores", "memory_gib"))
    return f"{cpu}, {cores} cores, {memory} GiB"


def _few(rows: Mapping[tuple[object, ...], Measurement]) -> str:
    names = [row.name for row in rows.values()]
    more = f" and {len(names) - 3} more" if len(names) > 3 else ""
    return ", ".join(names[:3]) + more
