"""The promotion gate: a pure policy over two evaluation reports of the same edits.

A challenger must beat every baseline, and must not be surely worse than the editor it came from (`evaluate.previous`); and against
the champion, edit by edit: be at least as good at editing (better by `margin`), not worse at preserving, and let no edit type
collapse. Every rule leaves its reason, whether it opened the gate or shut it.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from ip2p.model.bootstrap import bootstrap, resampled_means

Report = Mapping[str, Any]
_FEWEST = 8
"""Edits of a type without which it is not said to have collapsed: of very few, resamples tell nothing."""


@dataclass(frozen=True, slots=True)
class Policy:
    """What the gate asks for (params: `register`)."""

    margin: float = 0.0
    """By how much a challenger must be better than each baseline, and than the champion."""
    confidence: float = 0.8
    """Least share of bootstrap resamples in which it is at least so much better than the champion; an equal one is, at a margin of 0."""
    preserving: float = 0.02
    """How much less it may preserve than the champion."""


@dataclass(frozen=True, slots=True)
class Decision:
    """Whether a challenger becomes champion, and every reason for it."""

    promoted: bool
    reasons: tuple[str, ...]


def decide(challenger: Report, champion: Report | None, policy: Policy) -> Decision:
    """Compare `report.json` contents by the measure that they name (`judged_by`): success where the truth is known.

    A champion measured on other edits, or otherwise, cannot be compared: the gate stays shut, and a person may open it.
    """
    rules = [*_against_baselines(challenger, policy), *_against_previous(challenger)]
    if champion is None:
        rules.append((True, "champion: none yet"))
    elif not comparable(champion, challenger):
        rules.append((False, "champion: measured on other edits or by other means, not compared (`ip2p release promote` decides)"))
    else:
        rules += _against_champion(challenger, champion, policy)
    return Decision(all(good for good, _ in rules), tuple(reason for _, reason in rules))


def comparable(one: Report, other: Report) -> bool:
    """Whether both were measured on the same edits by the same means."""
    return all(one.get(n) == other.get(n) for n in ("held_out", "measured"))


def _against_baselines(challenger: Report, policy: Policy) -> Iterator[tuple[bool, str]]:
    measure = _measure(challenger)
    score = challenger["headline"][measure]
    for name, baseline in challenger["baselines"].items():
        if name == "previous":
            continue
        better = score > baseline[measure] + policy.margin
        yield better, f"{name}: {measure} {score:.3f} {'beats' if better else 'does not beat'} {baseline[measure]:.3f}"


def _against_previous(challenger: Report) -> Iterator[tuple[bool, str]]:
    if "previous" in challenger["baselines"]:
        measure = _measure(challenger)
        gain = challenger["paired"]["previous"][measure]
        worse = gain["high"] < 0
        told = f"previous: {measure} {gain['difference']:+.3f} [{gain['low']:+.3f}, {gain['high']:+.3f}]"
        yield not worse, f"{told}: {'surely worse' if worse else 'not surely worse'}"


def _against_champion(challenger: Report, champion: Report, policy: Policy) -> Iterator[tuple[bool, str]]:
    if taught := set(champion.get("taught", ())):
        challenger, champion = _without(challenger, taught), _without(champion, taught)
        yield bool(champion["edit_types"]), f"champion: was trained on {len(taught)} of these edits, which are left out"
        if not champion["edit_types"]:
            return
    measure, ours, theirs = _measure(challenger), challenger["rows"], champion["rows"]
    gains = _differences(ours[measure], theirs[measure])
    sure = _share_above(gains, policy.margin)
    mean, better = sum(gains) / len(gains), sure >= policy.confidence
    low, high = bootstrap(gains)
    told = f"champion: {measure} {mean:+.3f} [{low:+.3f}, {high:+.3f}], in {sure:.0%} of resamples at least {policy.margin:+.3f}"
    told += f" ({policy.confidence:.0%} wanted)"
    yield better, f"{told}: {'enough' if better else 'not enough'}"
    kept = "stayed" if "stayed" in ours else "image_similarity"
    losses = _differences(ours[kept], theirs[kept])
    lost = sum(losses) / len(losses)
    yield lost >= -policy.preserving, f"champion: {kept} {lost:+.3f} ({-policy.preserving:+.3f} allowed)"
    fallen = _collapsed(challenger, champion, measure)
    yield not fallen, f"edit types: {', '.join(fallen) + ' collapsed' if fallen else 'none collapsed'}"


def _without(report: Report, left_out: Collection[int]) -> Report:
    """A report's rows and edit types without some of its edits."""
    kept = [i for i in range(len(report["edit_types"])) if i not in left_out]
    rows = {name: [values[i] for i in kept] for name, values in report["rows"].items()}
    return {**report, "rows": rows, "edit_types": [report["edit_types"][i] for i in kept]}


def _collapsed(challenger: Report, champion: Report, measure: str) -> list[str]:
    """Edit types of which the champion does some, at which the challenger is worse in (almost) every resample, and by half or more."""
    types: Sequence[str] = challenger.get("edit_types", ())
    fallen = []
    for type in sorted(set(types)):
        ours, theirs = ([v for v, t in zip(r["rows"][measure], types, strict=True) if t == type] for r in (challenger, champion))
        surely_worse = _share_above(_differences(theirs, ours), 1e-9) >= 0.975
        if surely_worse and len(theirs) >= _FEWEST and sum(ours) <= sum(theirs) / 2 and sum(theirs) > 0:
            fallen.append(type)
    return fallen


def _measure(report: Report) -> str:
    return str(report.get("judged_by", "success"))


def _differences(ours: Sequence[float], theirs: Sequence[float]) -> list[float]:
    return [a - b for a, b in zip(ours, theirs, strict=True)]


def _share_above(values: Sequence[float], least: float) -> float:
    return float((resampled_means(values) >= least).double().mean())
