"""What became of all pairs: seen → kept, by reason and edit type, as table and picture."""

from __future__ import annotations

import io
from collections import Counter
from collections.abc import Iterable

from ip2p.dataset.filters.chain import KEPT

_PALETTE = ("#e8590c", "#f08c00", "#ffd43b", "#868e96", "#1971c2", "#7048e8", "#c2255c", "#0b7285", "#5c940d", "#495057")


class Survival:
    """Counts of reasons by edit type; starts from what sampling dropped before anything was stored."""

    def __init__(self, dropped_earlier: dict[str, Counter[str]]) -> None:
        self._counts: dict[str, Counter[str]] = {t: Counter(c) for t, c in dropped_earlier.items()}

    def add(self, edit_types: Iterable[str], reasons: Iterable[str]) -> None:
        """Count rows of a shard."""
        for (edit_type, reason), count in Counter(zip(edit_types, reasons, strict=True)).items():
            self._counts.setdefault(edit_type, Counter())[reason] += count

    def reasons(self) -> Counter[str]:
        """Counts over all edit types, `KEPT` among them."""
        return sum(self._counts.values(), Counter[str]())

    def table(self) -> dict[str, dict[str, int]]:
        """Edit type → reason → count, in order of names and counts."""
        return {t: dict(self._counts[t].most_common()) for t in sorted(self._counts)}


def plot_survival(table: dict[str, dict[str, int]]) -> bytes:
    """One bar an edit type: what was kept, and what was dropped by reason; PNG bytes."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    total = sum((Counter(c) for c in table.values()), Counter[str]())
    reasons = [KEPT, *(r for r, _ in total.most_common() if r != KEPT)]
    colours = dict(zip(reasons, ("#2b8a3e", *_PALETTE * 2), strict=False))
    figure = Figure(figsize=(8.4, 1.2 + 0.32 * max(4, len(table))), dpi=110, layout="constrained")
    axes = figure.subplots()
    for row, (_, counts) in enumerate(reversed(table.items())):
        seen, left = sum(counts.values()), 0.0
        for reason in (r for r in reasons if counts.get(r)):
            axes.barh(row, counts[reason] / seen, left=left, color=colours[reason], height=0.72)
            left += counts[reason] / seen
        axes.text(1.01, row, f"{counts.get(KEPT, 0)} of {seen}", va="center", fontsize=8)
    axes.set_yticks(range(len(table)), list(reversed(table)))
    axes.set_xlim(0, 1)
    axes.set_xlabel("share of pairs")
    axes.spines[["top", "right"]].set_visible(False)
    handles = [axes.barh(0, 0, color=colours[r], label=f"{r} ({total[r]})") for r in reasons if total[r]]
    figure.legend(handles=handles, loc="outside right upper", frameon=False, fontsize=8)
    FigureCanvasAgg(figure)
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", metadata={"Software": None})
    return buffer.getvalue()
