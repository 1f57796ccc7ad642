"""The gate before training: a Great Expectations suite over the dataset that fails the run and names the offending rows.

Writes Data Docs (HTML). Great Expectations takes seconds to import, so it is imported inside the stage.
"""

from __future__ import annotations

import shutil
import time
import warnings
from collections import Counter
from collections.abc import Set
from concurrent.futures import ThreadPoolExecutor
from hashlib import sha256
from pathlib import Path
from typing import Any

import pandas as pd
import pyarrow as pa

from ip2p.dataset.captions import every_caption, repetition_key
from ip2p.dataset.docs import make_offline
from ip2p.dataset.filters.clip import ClipFilter
from ip2p.errors import DataError, ValidationFailedError
from ip2p.params import FilterParams, Params, ValidateParams
from ip2p.pictures import open_picture
from ip2p.records import BY_CAPTION, SPLITS, UNKNOWN, StageReport, written_here
from ip2p.store import digest, read_json, read_shard, shards, write_json

_NAMED = 5
_DECIDED = {
    "in_training": "validate.min_pairs",
    "drift": "validate.max_drift",
    "width": "validate.min_side",
    "height": "validate.min_side",
    "share_of_type": "validate.max_share",
    "splits_of_picture": "give examples of one source picture one triplet_id when they are imported",
}
"""The parameters that some columns are held against, or what mends them."""
_SAID = {"min_value": "at least", "max_value": "at most", "value_set": "one of"}
_PICTURES = ("original_image", "edited_image")


def run(params: Params, *, dataset: Path, docs: Path, marker: Path, work: Path) -> StageReport:
    """Validate `dataset`; write Data Docs to `docs` and, if all holds, `marker`. Raises `ValidationFailedError`.

    `work/last.json` holds the shares of edit types of the last dataset that passed, for drift.
    """
    began = time.monotonic()
    marker.unlink(missing_ok=True)
    section, last = params.validate_, work / "last.json"
    frame = facts(dataset, params.filter, benchmark_keys(section.benchmarks))
    shares = _shares(frame)
    drift = _distance(shares, read_json(last)) if last.exists() else 0.0
    problems = check(frame.assign(drift=drift), section, docs)
    if problems:
        raise ValidationFailedError("; ".join(problems) + f". See {docs}/index.html; nothing was trained")
    write_json(last, shares)
    write_json(marker, {"dataset": digest(dataset), "examples": len(frame), "splits": dict(Counter(frame["split"]))})
    return StageReport(
        stage="validate",
        seen=len(frame),
        kept=len(frame),
        seconds=time.monotonic() - began,
        kept_by_edit_type=dict(sorted(Counter(frame["edit_type"]).items())),
        extra={"drift": round(drift, 4), "without_captions": int((~frame["captioned"]).sum())},
    )


def benchmark_keys(files: tuple[str, ...]) -> frozenset[str]:
    """The captions of benchmark files, as they are compared."""
    return frozenset(repetition_key(caption) for file in files for caption in every_caption(file))


def facts(dataset: Path, thresholds: FilterParams, benchmarks: frozenset[str] = frozenset()) -> pd.DataFrame:
    """One row an example: its columns without pixels, what its pictures turn out to be, and what it has to spare over its thresholds."""
    parts: list[pa.Table] = []
    sides: list[list[tuple[int, int]]] = []
    sources: list[str] = []
    with ThreadPoolExecutor() as pool:
        for table in (read_shard(path) for split in _present_splits(dataset) for path in shards(dataset, f"{split}-")):
            pictures = table.select(["pair_id", *_PICTURES]).to_pylist()  # of one shard at a time: a dataset's do not fit into memory
            sides += pool.map(lambda row: [_side(row[c], f"{row['pair_id']}.{c}") for c in _PICTURES], pictures)
            sources += [sha256(_encoded(row["original_image"])).hexdigest() for row in pictures]
            parts.append(table.drop_columns(list(_PICTURES)))
    arrow = pa.concat_tables(parts)
    frame = arrow.to_pandas()
    frame["width"], frame["height"] = [s[0][0] for s in sides], [s[0][1] for s in sides]
    frame["same_size"] = [s[0] == s[1] for s in sides]
    frame["captioned"] = (frame["original_prompt"] != "") | (frame["edited_prompt"] != "")
    frame["prompts_differ"] = (frame["original_prompt"].str.strip() != frame["edited_prompt"].str.strip()) | ~frame["captioned"]
    frame["source"] = sources
    told = zip(*(frame[c] for c in ("triplet_id", "original_prompt", "edit_prompt", "edited_prompt")), strict=True)
    frame["own"] = [written_here(*row) for row in told]
    for column, group in (("splits_of_triplet", "triplet_id"), ("splits_of_caption", "original_prompt"), ("splits_of_picture", "source")):
        frame[column] = frame.groupby(group)["split"].transform("nunique")
    train = frame[frame["split"] == "train"]
    frame["in_training"] = (frame["split"] == "train").astype(int)
    frame["share_of_type"] = frame["edit_type"].map(train["edit_type"].value_counts() / max(1, len(train))).fillna(0.0)
    frame.loc[frame["edit_type"] == UNKNOWN, "share_of_type"] = 0.0
    frame["leaked"] = [repetition_key(c) in benchmarks for c in frame["original_prompt"].fillna("")]
    if "clip" in thresholds.chain:
        for score, spare in ClipFilter(thresholds).spare(arrow).items():
            frame[f"spare_{score}"] = spare
    checked: pd.DataFrame = frame
    return checked


def check(frame: pd.DataFrame, section: ValidateParams, docs: Path) -> list[str]:
    """Run the suite and write its Data Docs; returns a line a failed expectation, with row ids."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        import great_expectations as gx

        shutil.rmtree(docs, ignore_errors=True)
        project = docs.parent / f".{docs.name}-project"
        shutil.rmtree(project, ignore_errors=True)
        context = gx.get_context(mode="file", project_root_dir=str(project))
        context.variables.progress_bars = {"globally": False}  # type: ignore[assignment]
        batch = context.data_sources.add_pandas("dataset").add_dataframe_asset("examples").add_batch_definition_whole_dataframe("all")
        suite = context.suites.add(gx.ExpectationSuite(name="dataset", expectations=_expectations(gx, section, set(frame.columns))))
        definition = context.validation_definitions.add(gx.ValidationDefinition(name="dataset", data=batch, suite=suite))
        checkpoint = context.checkpoints.add(
            gx.Checkpoint(
                name="dataset",
                validation_definitions=[definition],
                result_format={"result_format": "COMPLETE", "unexpected_index_column_names": ["pair_id"]},
            )
        )
        outcome = checkpoint.run(batch_parameters={"dataframe": frame})
        context.build_data_docs()
        shutil.copytree(project / "gx" / "uncommitted" / "data_docs" / "local_site", docs)
        shutil.rmtree(project)
    make_offline(docs)
    results = [r for run in outcome.run_results.values() for r in run.results]
    return [_line(r) for r in results if not r.success]


def _expectations(gx: Any, section: ValidateParams, columns: Set[str]) -> list[Any]:
    e = gx.expectations
    captions = ("original_prompt", "edited_prompt")
    texts, scores = ("edit_prompt", *captions), ("sim_image", *BY_CAPTION)
    captioned = {"row_condition": "captioned", "condition_parser": "pandas"}
    return [
        e.ExpectColumnSumToBeBetween(column="in_training", min_value=section.min_pairs),
        e.ExpectColumnValuesToBeUnique(column="pair_id"),
        *(e.ExpectColumnValuesToNotBeNull(column=c) for c in ("pair_id", "triplet_id", "edit_type", *texts, "sim_image")),
        *(e.ExpectColumnValuesToNotBeNull(column=c, **captioned) for c in BY_CAPTION),
        *(e.ExpectColumnValueLengthsToBeBetween(column=c, min_value=1, max_value=2000, **captioned) for c in captions),
        e.ExpectColumnValueLengthsToBeBetween(column="edit_prompt", min_value=1, max_value=section.max_instruction),
        e.ExpectColumnValuesToMatchRegex(column="edit_prompt", regex=r"\S"),
        *(e.ExpectColumnValuesToMatchRegex(column=c, regex=r"\S", **captioned) for c in captions),
        e.ExpectColumnValuesToBeInSet(column="leaked", value_set=[False]),
        e.ExpectColumnValuesToBeBetween(column="drift", max_value=section.max_drift),
        e.ExpectColumnValuesToBeInSet(column="prompts_differ", value_set=[True]),
        e.ExpectColumnValuesToBeInSet(column="same_size", value_set=[True]),
        *(e.ExpectColumnValuesToBeInSet(column=f"splits_of_{c}", value_set=[1]) for c in ("triplet", "picture")),
        e.ExpectColumnValuesToBeInSet(column="splits_of_caption", value_set=[1], row_condition="own", condition_parser="pandas"),
        e.ExpectColumnValuesToBeInSet(column="split", value_set=list(SPLITS)),
        *(e.ExpectColumnValuesToBeBetween(column=c, min_value=section.min_side) for c in ("width", "height")),
        *(e.ExpectColumnValuesToBeBetween(column=c, min_value=-1.001, max_value=1.001) for c in scores),
        *(e.ExpectColumnValuesToBeBetween(column=f"spare_{c}", min_value=0) for c in scores if f"spare_{c}" in columns),
        e.ExpectColumnValuesToBeBetween(column="share_of_type", min_value=0, max_value=section.max_share),
    ]


def _line(result: Any) -> str:
    """What an expectation found, and the parameter that decides it, if one does."""
    config = result.expectation_config
    column = config.kwargs.get("column", "rows")
    wanted = {k: v for k, v in config.kwargs.items() if k in ("min_value", "max_value", "value_set") and v is not None}
    observed = result.result.get("observed_value")
    if column == "in_training":
        asked = f"{_DECIDED[column]} wants {wanted['min_value']:g}"
        return f"{observed} pairs to train on, {asked}: make more (triplets.count), loosen filter, or lower it"
    by = f" ({_DECIDED[column]})" if column in _DECIDED else ""
    told = ", ".join(f"{_SAID[k]} {v}" for k, v in wanted.items())
    if "unexpected_index_list" not in result.result:
        return f"{column}: {observed}, wanted {told}{by}"
    ids = [str(row["pair_id"]) for row in result.result["unexpected_index_list"] or []]
    named = ", ".join(ids[:_NAMED]) + (f" and {len(ids) - _NAMED} more" if len(ids) > _NAMED else "")
    return f"{column}: wanted {told or config.type}{by}, broken by {named}"


def _shares(frame: pd.DataFrame) -> dict[str, float]:
    counts = Counter(frame["edit_type"])
    return {str(t): n / len(frame) for t, n in sorted(counts.items())}


def _distance(shares: dict[str, float], before: dict[str, float]) -> float:
    """Total variation distance of two distributions, 0 to 1."""
    return sum(abs(shares.get(t, 0.0) - before.get(t, 0.0)) for t in {*shares, *before}) / 2


def _present_splits(dataset: Path) -> list[str]:
    present = [s for s in SPLITS if any(dataset.glob(f"{s}-*.parquet"))]
    if "train" not in present:
        if not present:
            raise DataError(f"{dataset}: no dataset; run `ip2p filter` (or `dvc repro`) first")
        raise DataError(f"{dataset}: no training examples; loosen filter thresholds or make more pairs (params.yaml)")
    return present


def _encoded(image: dict[str, Any] | None) -> bytes:
    """The bytes of a picture; none where there is none."""
    return (image or {}).get("bytes") or b""


def _side(image: dict[str, Any] | None, where: str) -> tuple[int, int]:
    """Width and height; (0, 0) if there is no whole picture."""
    try:
        return open_picture(_encoded(image), where=where).size
    except DataError:
        return (0, 0)
