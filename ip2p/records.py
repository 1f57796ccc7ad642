"""What crosses a boundary: frozen records with content-hash ids, and the Arrow schema of each table.

Caption → Triplet → Pair → Verdict → Example; each row carries the ids of its parents, so any edit can be traced back.
Image columns are `{bytes, path}` structs and the reference dataset's five columns come first, as the field expects.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
from pathlib import Path

import pyarrow as pa

from ip2p.store import fingerprint

IMAGE = pa.struct([("bytes", pa.binary()), ("path", pa.string())])
TRIPLETS = pa.schema(
    [
        ("triplet_id", pa.string()),
        ("caption_id", pa.string()),
        ("caption", pa.string()),
        ("source", pa.string()),
        ("instruction", pa.string()),
        ("edited_caption", pa.string()),
        ("edit_type", pa.string()),
        ("writer", pa.string()),
    ]
)
_REFERENCE = [
    ("original_prompt", pa.string()),
    ("original_image", IMAGE),
    ("edit_prompt", pa.string()),
    ("edited_prompt", pa.string()),
    ("edited_image", IMAGE),
]
_PAIR = [
    ("pair_id", pa.string()),
    ("triplet_id", pa.string()),
    ("edit_type", pa.string()),
    ("seed", pa.int64()),
    ("p2p", pa.float64()),
    ("guidance", pa.float64()),
    ("sim_0", pa.float64()),
    ("sim_1", pa.float64()),
    ("sim_image", pa.float64()),
    ("sim_direction", pa.float64()),
    ("shift", pa.float64()),
    ("zoom", pa.float64()),
    ("outside", pa.float64()),
    ("contrast", pa.float64()),
    ("burnt", pa.float64()),
    ("hash_0", pa.int64()),
    ("hash_1", pa.int64()),
    ("hash_clip", pa.int64()),
    ("unsafe", pa.float64()),
]
BY_CAPTION = ("sim_0", "sim_1", "sim_direction")
"""The scores of a pair that compare pictures with captions; null where a pair was imported without any."""
PAIRS = pa.schema([*_REFERENCE, *_PAIR])
EXAMPLES = pa.schema([*_REFERENCE, *_PAIR, ("split", pa.string()), ("rank", pa.int64())])
VERDICTS = pa.schema(
    [("pair_id", pa.string()), ("triplet_id", pa.string()), ("edit_type", pa.string()), ("kept", pa.bool_()), ("reason", pa.string())]
)

JUDGEMENTS = pa.schema(
    [
        ("pair_id", pa.string()),
        ("repeat", pa.int64()),
        ("followed", pa.int64()),
        ("kept", pa.int64()),
        ("quality", pa.int64()),
        ("score", pa.float64()),
        ("outcome", pa.string()),
        ("model", pa.string()),
        ("reply", pa.string()),
    ]
)
SPLITS = ("train", "validation", "test")
"""The splits of a dataset; a triplet lies in one of them."""
TRAINED = "models/editor"
"""Folder of the editor that was trained."""
RECORD = "training.json"
"""How an editor was trained; lies beside its model_index.json."""
CAPTIONS = "captions.safetensors"
"""Marks of the captions that an editor was trained on; lies there, too."""
MLFLOW_RUN = "mlflow_run"
"""In a stage's report: the run that MLflow keeps of it."""
UNKNOWN = "other"
"""The type of an edit that nobody named: written by a completion model, or imported without one."""
SHOWN = ("source", "editor", "sdedit", "truth")
"""The pictures of a held-out edit that people are shown, in order."""


@dataclass(frozen=True, slots=True)
class Caption:
    """A caption to be edited and where it came from (`world` or `file:line`)."""

    text: str
    source: str

    @property
    def id(self) -> str:
        """Content hash."""
        return fingerprint("caption", self.text)


def triplet_of(*texts: str) -> str:
    """The id of a triplet by its caption, instruction and edited caption; by a caption alone that of everything made of it."""
    return fingerprint("triplet", *texts)


def written_here(triplet_id: str, caption: str, instruction: str, edited_caption: str) -> bool:
    """Whether a triplet was written by ip2p: its id is then that of its texts."""
    return triplet_id == triplet_of(caption, instruction, edited_caption)


@dataclass(frozen=True, slots=True)
class Triplet:
    """Caption, instruction, edited caption (paper §3.1)."""

    caption: Caption
    instruction: str
    edited_caption: str
    edit_type: str
    writer: str

    @property
    def id(self) -> str:
        """Content hash."""
        return triplet_of(self.caption.text, self.instruction, self.edited_caption)

    def row(self) -> dict[str, str]:
        """As a row of `TRIPLETS`."""
        return {
            "triplet_id": self.id,
            "caption_id": self.caption.id,
            "caption": self.caption.text,
            "source": self.caption.source,
            "instruction": self.instruction,
            "edited_caption": self.edited_caption,
            "edit_type": self.edit_type,
            "writer": self.writer,
        }


@dataclass(frozen=True, slots=True)
class Draw:
    """What one pair is sampled with: everything random, derived from (run seed, triplet id, sample number)."""

    triplet_id: str
    seed: int
    p2p: float
    guidance: float

    @property
    def pair_id(self) -> str:
        """Content hash."""
        return fingerprint("pair", self.triplet_id, self.seed, self.p2p, self.guidance)


@dataclass(frozen=True, slots=True)
class StageReport:
    """What a stage saw, kept and dropped, and how long it took."""

    stage: str
    seen: int
    kept: int
    seconds: float
    dropped_by_reason: dict[str, int] = field(default_factory=dict)
    kept_by_edit_type: dict[str, int] = field(default_factory=dict)
    extra: dict[str, float | str] = field(default_factory=dict)

    def as_dict(self) -> dict[str, object]:
        """As JSON."""
        return asdict(self)

    def lines(self) -> list[str]:
        """What to tell who ran the stage; of a page where it is."""
        if "path" in self.extra:
            return [str(Path(str(self.extra["path"])).resolve())]
        lines = [f"{self.stage}: kept {self.kept} of {self.seen} in {self.seconds:.1f} s"]
        if self.stage == "register":
            became = "is champion" if self.kept else "is not promoted:"
            lines = [f"register: version {self.extra['version']} of {self.extra['model']} {became}"]
        if self.stage == "train":
            lines = [f"train: saw {self.seen} samples in {self.seconds:.1f} s, loss {self.extra['loss']:.4f}"]
        dropped = self.dropped_by_reason.items()
        return lines + [f"  {reason}" if self.stage == "register" else f"  {n:6d}  {reason}" for reason, n in dropped]
