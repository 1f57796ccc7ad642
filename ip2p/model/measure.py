"""What is measured of an edited picture, and what the numbers say of a system: means, intervals, paired differences.

CLIP image, direction and text similarity (where captions do not tell the way of every edit: that of the target picture); `l1`, `l2`
against the target; `outside`, `shift`, `zoom` (how far from 1) against the source; DINO similarity to the source by parameter; and where
the truth is known: was the edit done, did the rest stay. Where it is not: `change`, the mean of all pixels (Emu Edit's L1), and CLIP's and
DINO's similarity to the target (MagicBrush's CLIP-I and DINO). `outside` is the mean change where the truth has none or beyond the
masks of a benchmark, 0 where an edit may be everywhere; with neither, that beyond the region that changed most
(`ip2p.dataset.alignment`), which says little of a picture that changed all over.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from ip2p.clip import Clip, image_features, similarities, text_features
from ip2p.dataset.alignment import align
from ip2p.errors import ModelError, first_line
from ip2p.model.bootstrap import bootstrap, share_interval
from ip2p.model.heldout import HeldOut
from ip2p.models import model_source, pinned
from ip2p.pictures import to_png
from ip2p.store import write_bytes
from ip2p.world.truth import Truth, read_edit

_SHARES = ("success", "done", "stayed")
Rows = dict[str, list[float]]
Edit = Callable[[slice], Tensor]


@dataclass
class Meter:
    """The models that measure; features of sources and texts are computed once."""

    clip: Clip
    legacy: bool = False
    dino: Dino | None = None
    _known: dict[tuple[str, int, int], tuple[Tensor, Tensor | None, Tensor, Tensor]] = field(default_factory=dict)

    def rows(self, edited_BCHW: Tensor, held: HeldOut, some: slice) -> Rows:
        """A value for each edited picture and measure."""
        sources = held.sources(some)
        image_0, target, *texts = self._features(sources, held, some)
        image_1 = image_features(self.clip, edited_BCHW, legacy=self.legacy)
        scores = similarities(image_0, image_1, *texts)
        rows: Rows = {"image_similarity": scores.image.tolist()}
        if held.directed or held.by_target:
            asked = similarities(image_0, image_1, image_0, target) if held.by_target and target is not None else scores
            rows["direction_similarity"] = asked.direction.tolist()
        if held.captioned:
            rows["text_similarity"] = scores.caption_1.tolist()
        aligned = align(sources, edited_BCHW)
        rows |= {"outside": aligned.outside.tolist(), "shift": aligned.shift.tolist(), "zoom": (aligned.zoom - 1).abs().tolist()}
        if self.dino is not None:
            rows["dino_similarity"] = self.dino.similarity(sources, edited_BCHW)
        if held.targeted:
            targets = held.targets(some)
            off = (edited_BCHW - targets).abs()
            rows |= {"l1": [float(d.mean()) for d in off], "l2": [float(d.square().mean()) for d in off]}
        if held.known:
            truths = [Truth.of(*pictures) for pictures in zip(sources, targets, strict=True)]
            readings = [read_edit(x, truth) for x, truth in zip(edited_BCHW, truths, strict=True)]
            rows |= {"done": [float(r.done) for r in readings], "stayed": [float(r.stayed) for r in readings]}
            return rows | {"success": [float(r.done and r.stayed) for r in readings], "outside": [r.outside for r in readings]}
        change = (edited_BCHW - sources).abs().mean(1)
        rows["change"] = [float(c.mean()) for c in change]
        if held.masked:
            rows["outside"] = [float(c[b].mean()) if b.any() else 0.0 for c, b in zip(change, held.beyond(some), strict=True)]
        if target is not None:
            rows["target_similarity"] = (target * image_1).sum(-1).tolist()
            if self.dino is not None:
                rows["target_dino_similarity"] = self.dino.similarity(targets, edited_BCHW)
        return rows

    def _features(self, sources_BCHW: Tensor, held: HeldOut, some: slice) -> tuple[Tensor, Tensor | None, Tensor, Tensor]:
        """CLIP's of the sources, of the targets where no truth is known, and of the captions of both."""
        indices = range(*some.indices(len(held.edits)))
        key = (held.mark, indices.start, indices.stop)
        if key not in self._known:
            image_0, target = image_features(self.clip, sources_BCHW, legacy=self.legacy), None
            if held.targeted and not held.known:
                target = image_features(self.clip, held.targets(some), legacy=self.legacy)
            before, after = ([getattr(e, n) for e in held.edits[some]] for n in ("caption", "edited_caption"))
            self._known[key] = (image_0, target, text_features(self.clip, before), text_features(self.clip, after))
        return self._known[key]


@dataclass(frozen=True)
class Dino:
    """A self-supervised vision transformer and the normalisation of its input."""

    model: Any
    size: int
    mean: tuple[float, ...]
    std: tuple[float, ...]
    device: torch.device

    def similarity(self, first_BCHW: Tensor, second_BCHW: Tensor) -> list[float]:
        """Cosine of each pair of images in [0, 1]."""
        return (self.features(first_BCHW) * self.features(second_BCHW)).sum(-1).tolist()

    @torch.inference_mode()
    def features(self, images_BCHW: Tensor) -> Tensor:
        """Unit class-token features `BD` of images in [0, 1]."""
        x = F.interpolate(images_BCHW.to(self.device), size=(self.size, self.size), mode="bicubic", antialias=True).clamp(0, 1)
        mean, std = (torch.tensor(v, device=x.device).view(1, 3, 1, 1) for v in (self.mean, self.std))
        return F.normalize(self.model(pixel_values=(x - mean) / std).last_hidden_state[:, 0].float(), dim=-1)


def load_dino(name: str, *, device: torch.device) -> Dino:
    """Load a transformers vision model (folder or Hub id, such as `facebook/dino-vits16`). Raises `ModelError`."""
    from safetensors import SafetensorError
    from transformers import AutoImageProcessor, AutoModel

    source = model_source(name, kind="dino", subject="evaluate.dino")
    try:
        model = AutoModel.from_pretrained(**pinned(source), use_safetensors=True)
        preprocess = AutoImageProcessor.from_pretrained(**pinned(source))
    except (OSError, ValueError, RuntimeError, KeyError, SafetensorError) as error:
        raise ModelError(f"evaluate.dino: {source} cannot be loaded: {first_line(error)}") from error
    size = preprocess.size.get("shortest_edge") or preprocess.size["height"]
    return Dino(model.to(device).eval().requires_grad_(False), size, tuple(preprocess.image_mean), tuple(preprocess.image_std), device)


@dataclass(frozen=True)
class Point:
    """One system at one setting, measured on each held-out edit."""

    system: str
    setting: dict[str, float]
    rows: Rows
    pictures: Path | None = None
    """Folder of its edited pictures, `NNNNN.png`, if they were kept."""

    def picture(self, index: int) -> bytes:
        """An edited picture that was kept, as a PNG file."""
        assert self.pictures is not None, "pictures are kept at the headline's scales"
        return (self.pictures / picture_name(index)).read_bytes()

    def mean(self, name: str) -> float:
        """The mean of a measure."""
        return sum(self.rows[name]) / len(self.rows[name])

    def means(self) -> dict[str, float]:
        """The mean of every measure."""
        return {name: self.mean(name) for name in self.rows}

    def summary(self, types: Sequence[str] = ()) -> dict[str, Any]:
        """As it stands in a report: means, 95% bootstrap intervals and, with the edits' types, a table by type."""
        whole = {"system": self.system, "setting": self.setting, **self.means()}
        return whole | {"intervals": {n: _interval(n, v) for n, v in self.rows.items()}, "by_type": self._by_type(types)}

    def _by_type(self, types: Sequence[str]) -> dict[str, dict[str, float]]:
        shown = ("success", "done", "stayed") if "done" in self.rows else ("direction_similarity", "image_similarity")
        table: dict[str, dict[str, float]] = {}
        for type in sorted(set(types)):
            own = {n: [v for v, t in zip(self.rows[n], types, strict=True) if t == type] for n in shown if n in self.rows}
            table[type] = {"count": len(next(iter(own.values()), []))} | {n: sum(v) / len(v) for n, v in own.items()}
            for name, values in own.items():
                table[type][f"{name}_low"], table[type][f"{name}_high"] = _interval(name, values)
        return table


def measure(held: HeldOut, meter: Meter, edit: Edit, *, batch: int, keep: Path | None = None) -> Rows:
    """Let a system edit all held-out sources, a batch at a time, and measure each picture; `keep` is where pictures are written."""
    rows: Rows = {}
    for first in range(0, len(held.edits), batch):
        some = slice(first, first + batch)
        edited = edit(some).cpu()
        for name, values in meter.rows(edited, held, some).items():
            rows.setdefault(name, []).extend(values)
        if keep is not None:
            for number, picture in enumerate(edited, first):
                write_bytes(keep / picture_name(number), to_png(picture))
    return rows


def _interval(name: str, values: Sequence[float]) -> tuple[float, float]:
    return share_interval(values) if name in _SHARES else bootstrap(values)


def picture_name(index: int) -> str:
    """File name of a kept picture."""
    return f"{index:05d}.png"


def judged_by(rows: Rows) -> str:
    """The one measure by which systems are ranked: success where it can be read, else CLIP's direction similarity."""
    return next(n for n in ("success", "direction_similarity", "image_similarity") if n in rows)


def paired(ours: Rows, theirs: Rows) -> dict[str, dict[str, float]]:
    """Mean difference of each shared measure over the same edits, with its 95% bootstrap interval over edits."""
    table = {}
    for name in ours.keys() & theirs.keys():
        differences = [a - b for a, b in zip(ours[name], theirs[name], strict=True)]
        low, high = bootstrap(differences)
        table[name] = {"difference": sum(differences) / len(differences), "low": low, "high": high}
    return dict(sorted(table.items()))
