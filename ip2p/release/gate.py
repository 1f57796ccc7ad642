"""The promotion gate: a pure policy over evaluation reports. Better than both baselines, and not worse than the champion."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True, slots=True)
class Decision:
    """Whether a challenger becomes champion, and every reason for it."""

    promoted: bool
    reasons: tuple[str, ...]


def decide(challenger: Mapping[str, Any], champion: Mapping[str, Any] | None, *, margin: float) -> Decision:
    """Compare `report.json` contents by the measure that they name (`judged_by`): success where the truth is known.

    A champion measured on other edits, or otherwise, cannot be compared and does not block.
    """
    measure = challenger.get("judged_by", "success")
    score = challenger["headline"][measure]
    reasons, promoted = [], True
    for name, baseline in challenger["baselines"].items():
        better = score > baseline[measure] + margin
        promoted &= better
        reasons.append(f"{name}: {measure} {score:.3f} {'beats' if better else 'does not beat'} {baseline[measure]:.3f}")
    if champion is not None and all(champion.get(n) == challenger.get(n) for n in ("held_out", "measured")):
        better = score >= champion["headline"][measure] + margin
        promoted &= better
        reasons.append(f"champion: {measure} {score:.3f} {'holds against' if better else 'is below'} {champion['headline'][measure]:.3f}")
    elif champion is not None:
        reasons.append("champion: measured on other edits or by other means, not compared")
    else:
        reasons.append("champion: none yet")
    return Decision(promoted, tuple(reasons))
