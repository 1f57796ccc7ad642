"""The two plots of an evaluation: similarity curves (paper Fig. 8) and success by edit type."""

from __future__ import annotations

import io
from typing import Any

_COLOURS = {"editor": "#d9480f", "sdedit": "#1971c2", "source": "#868e96", "truth": "#2b8a3e"}


def plot_curves(points: list[dict[str, Any]]) -> bytes:
    """CLIP image similarity against direction similarity, one line a system; PNG bytes."""
    figure, axes = _axes(6.4, 4.4)
    for system, colour in _COLOURS.items():
        own = [p for p in points if p["system"] == system]
        for line, label in zip(_lines(own), (system, None), strict=False):
            xs, ys = [p["direction_similarity"] for p in line], [p["image_similarity"] for p in line]
            axes.plot(xs, ys, "o-" if label else "o--", color=colour, label=label, linewidth=1.6, markersize=5)
            for p, x, y in zip(line, xs, ys, strict=True):
                if len(own) > 1:
                    axes.annotate(_label(p["setting"]), (x, y), textcoords="offset points", xytext=(5, 4), fontsize=7, color=colour)
    axes.set_xlabel("CLIP text-image direction similarity")
    axes.set_ylabel("CLIP image similarity")
    axes.legend(frameon=False)
    return _png(figure)


def plot_types(by_type: dict[str, dict[str, float]]) -> bytes:
    """Share of edits done and of pictures that stayed, by edit type, with 95% intervals; PNG bytes."""
    figure, axes = _axes(7.2, 3.6)
    names = list(by_type)
    done, stayed = [by_type[n]["done"] for n in names], [by_type[n]["stayed"] for n in names]
    errors = [
        [by_type[n]["done"] - by_type[n]["done_low"] for n in names],
        [by_type[n]["done_high"] - by_type[n]["done"] for n in names],
    ]
    places = range(len(names))
    axes.bar([p - 0.2 for p in places], done, 0.4, yerr=errors, color="#d9480f", label="edit done", error_kw={"linewidth": 1})
    axes.bar([p + 0.2 for p in places], stayed, 0.4, color="#ced4da", label="rest stayed")
    axes.set_xticks(list(places), names, rotation=30, ha="right")
    axes.set_ylim(0, 1.05)
    axes.legend(frameon=False, ncol=2, loc="lower right", bbox_to_anchor=(1, 1))
    return _png(figure)


def _axes(width: float, height: float) -> tuple[Any, Any]:
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width, height), dpi=110, layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.subplots()
    axes.spines[["top", "right"]].set_visible(False)
    axes.grid(alpha=0.25)
    return figure, axes


def _lines(points: list[dict[str, Any]]) -> list[list[dict[str, Any]]]:
    """The image guidance sweep (solid) and the text guidance sweep (dashed), each in order of its scale."""
    if not points or "text_guidance" not in points[0]["setting"]:
        return [points]
    scales = [p["setting"]["text_guidance"] for p in points]
    usual = max(scales, key=scales.count)
    image = [p for p in points if p["setting"]["text_guidance"] == usual]
    others = [p for p in points if p["setting"]["text_guidance"] != usual]
    shared = [p for p in image if others and p["setting"]["image_guidance"] == others[0]["setting"]["image_guidance"]]
    lines = [sorted(image, key=lambda p: float(p["setting"]["image_guidance"]))]
    return lines + ([sorted(others + shared, key=lambda p: float(p["setting"]["text_guidance"]))] if others else [])


def _label(setting: dict[str, float]) -> str:
    return " ".join(f"{k.split('_')[0][0]}{v:g}" for k, v in setting.items())


def _png(figure: Any) -> bytes:
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png")
    return buffer.getvalue()
