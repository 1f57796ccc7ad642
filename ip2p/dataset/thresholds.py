"""The CLIP thresholds of the paper's filter (§3.1.2), for one scored pair: why it is rejected, if it is."""

from __future__ import annotations

from dataclasses import dataclass

from ip2p.params import FilterParams

MISSES = {
    "sim_0": "source unlike its caption",
    "sim_1": "edit unlike its caption",
    "sim_image": "images too different",
    "copy": "images the same",
    "sim_direction": "change is not the one asked for",
}


@dataclass(frozen=True, slots=True)
class Similar:
    """The four similarities of a pair (paper §3.1.2; Gal et al. 2022 for that of direction)."""

    sim_0: float
    sim_1: float
    sim_image: float
    sim_direction: float


def reject_reason(pair: Similar, section: FilterParams, edit_type: str = "", *, margin: float = 0.0) -> str | None:
    """The first threshold that the pair misses by more than `margin`, or None; a score that is no number misses."""
    own = section.by_type.get(edit_type)
    section = section if own is None else section.model_copy(update=own.model_dump(exclude_none=True))
    least = {"sim_0": section.caption, "sim_1": section.caption, "sim_image": section.image}
    for name, threshold in least.items():
        if not getattr(pair, name) >= threshold - margin:
            return MISSES[name]
    if pair.sim_image > section.copy_limit + margin:
        return MISSES["copy"]
    return None if pair.sim_direction >= section.direction - margin else MISSES["sim_direction"]
