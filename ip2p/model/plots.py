"""Plots: similarity curves (paper Fig. 8) and success by edit type of an evaluation; measures over a parameter."""

from __future__ import annotations

import io
from typing import Any

_COLOURS = {"editor": "#d9480f", "previous": "#f59f00", "sdedit": "#1971c2", "source": "#868e96", "truth": "#2b8a3e"}
_SPARE = ("#d9480f", "#1971c2", "#868e96", "#2b8a3e", "#9c36b5", "#0b7285")
_SCALES = {"image_guidance": "s_I", "text_guidance": "s_T"}


def plot_curves(points: list[dict[str, Any]], colours: dict[str, str] = _COLOURS) -> bytes:
    """CLIP image similarity against direction similarity with 95% intervals, one line a system; PNG bytes.

    Of an editor a solid line over the image guidance and a dashed one over the text guidance; the ends of lines tell the scale there.
    The source as it is lies at (0, 1), far from all others, and is left out.
    """
    figure, axes = _axes(6.8, 4.8)
    points = [p for p in points if "direction_similarity" in p and p["system"] != "source"]
    systems = list(dict.fromkeys(p["system"] for p in points))
    spare = iter([c for c in _SPARE if c not in {colours.get(s) for s in systems}])
    for system in systems:
        own, colour = [p for p in points if p["system"] == system], colours.get(system) or next(spare)
        for line, label in zip(_lines(own), (system, None), strict=False):
            xs, ys = [p["direction_similarity"] for p in line], [p["image_similarity"] for p in line]
            axes.plot(xs, ys, "o-" if label else "o--", color=colour, label=label, linewidth=1.6, markersize=5)
            spans = [[_span(p, n) for p in line] for n in ("direction_similarity", "image_similarity")]
            bars = [[[low for low, _ in s], [high for _, high in s]] for s in spans]
            axes.errorbar(xs, ys, xerr=bars[0], yerr=bars[1], fmt="none", ecolor=colour, alpha=0.35, linewidth=1)
            side = {"xytext": (6, 4), "ha": "left"} if systems.index(system) % 2 == 0 else {"xytext": (-6, -10), "ha": "right"}
            for p, x, y in [(line[i], xs[i], ys[i]) for i in (0, -1) if len(line) > 1]:
                axes.annotate(_label(p, line), (x, y), textcoords="offset points", fontsize=8, color=colour, **side)
    axes.set_xlabel("CLIP text-image direction similarity")
    axes.set_ylabel("CLIP image similarity")
    scaled = any("text_guidance" in p["setting"] for p in points)
    axes.legend(frameon=False, fontsize=8, title="solid: over s_I, dashed: over s_T" if scaled else None, title_fontsize=8)
    return _png(figure)


def plot_types(by_type: dict[str, dict[str, float]]) -> bytes:
    """How far edits were done and pictures kept, by edit type, with 95% intervals; PNG bytes."""
    figure, axes = _axes(7.2, 3.6)
    names = list(by_type)
    done, stayed = ("done", "stayed") if all("done" in v for v in by_type.values()) else ("direction_similarity", "image_similarity")
    places = range(len(names))
    for column, offset, colour in ((done, -0.2, "#d9480f"), (stayed, 0.2, "#ced4da")):
        values = [by_type[n].get(column, 0.0) for n in names]
        below = [max(0.0, v - by_type[n].get(f"{column}_low", v)) for n, v in zip(names, values, strict=True)]
        above = [max(0.0, by_type[n].get(f"{column}_high", v) - v) for n, v in zip(names, values, strict=True)]
        spots, label = [p + offset for p in places], column.replace("_", " ")
        axes.bar(spots, values, 0.4, yerr=[below, above], color=colour, label=label, error_kw={"linewidth": 1})
    axes.set_xticks(list(places), names, rotation=30, ha="right")
    axes.set_ylim(0, 1.05)
    axes.legend(frameon=False, ncol=2, loc="lower right", bbox_to_anchor=(1, 1))
    return _png(figure)


def plot_shares(panels: dict[str, dict[str, list[tuple[float, float, float, float]]]], *, x: str) -> bytes:
    """A panel a measure, a line a method, of points (x, mean, low, high); PNG bytes."""
    figure, axes = _axes(2.9 * len(panels), 3.0, panels=len(panels))
    for ax, (title, lines) in zip(axes, panels.items(), strict=True):
        for (name, points), colour, style in zip(lines.items(), _SPARE, ("o-", "s-", "^--") * 2, strict=False):
            xs, ys, lows, highs = zip(*points, strict=True)
            ax.plot(xs, ys, style, color=colour, label=name, linewidth=1.6, markersize=4)
            ax.fill_between(xs, lows, highs, color=colour, alpha=0.1, linewidth=0)
        ax.set_title(title, fontsize=9)
    axes[0].legend(frameon=False, fontsize=8)
    figure.supxlabel(x, fontsize=9)
    return _png(figure)


def _span(point: dict[str, Any], name: str) -> tuple[float, float]:
    low, high = point["intervals"][name]
    return max(0.0, point[name] - low), max(0.0, high - point[name])


def _axes(width: float, height: float, panels: int = 1) -> tuple[Any, Any]:
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width, height), dpi=110, layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.subplots(1, panels)
    for ax in [axes] if panels == 1 else axes:
        ax.spines[["top", "right"]].set_visible(False)
        ax.grid(alpha=0.25)
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


def _label(point: dict[str, Any], line: list[dict[str, Any]]) -> str:
    """The scale that varies along the line, as it is at the point."""
    varied = next((k for k, v in point["setting"].items() if any(p["setting"].get(k) != v for p in line)), "")
    return f"{_SCALES.get(varied, varied)} {point['setting'][varied]:g}" if varied else ""


def _png(figure: Any) -> bytes:
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png")
    return buffer.getvalue()
