"""Filtering the scores of ten million candidates: seconds, rows a second, and the most memory, images untouched.

`python benchmarks/filter.py` makes shards of scores without images in a temporary folder, runs the whole chain of filters over them
shard by shard, and prints one line.
"""

from __future__ import annotations

import argparse
import resource
import tempfile
import time
from pathlib import Path

import numpy as np
import pyarrow as pa

from ip2p.dataset.filters.chain import Chain
from ip2p.dataset.read import read_scores
from ip2p.params import FilterParams
from ip2p.store import write_shard

ROWS_A_TRIPLET = 100


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, default=10_000_000)
    parser.add_argument("--shard", type=int, default=100_000, help="rows a shard (default: %(default)s)")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        paths = [make(Path(folder) / f"pairs-{n:05d}.parquet", n, options.shard) for n in range(options.rows // options.shard)]
        before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
        chain, kept, seen = Chain(FilterParams(shift=0.1, zoom=0.06, outside=0.2)), 0, 0
        began = time.monotonic()
        for path in paths:
            verdicts = chain.decide(read_scores(path, chain.columns))
            kept, seen = kept + int(verdicts.kept.sum()), seen + len(verdicts.ranks)
        seconds = time.monotonic() - began
    most = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    print(
        f"{seen:,} candidates, {kept:,} kept, {seconds:.0f} s, {seen / seconds:,.0f} a second, at most {most:.0f} MiB ({before:.0f} before)"
    )


def make(path: Path, number: int, rows: int) -> Path:
    """A shard of plausible scores."""
    rng = np.random.default_rng(number)
    triplets = np.arange(rows) // ROWS_A_TRIPLET + number * rows
    scores = {n: rng.normal(m, s, rows) for n, m, s in (("sim_0", 0.26, 0.03), ("sim_1", 0.25, 0.03), ("sim_image", 0.8, 0.1))}
    columns = {
        "pair_id": [f"{number:06d}{i:010d}" for i in range(rows)],
        "triplet_id": [f"{t:016d}" for t in triplets],
        "edit_prompt": ["make it winter"] * rows,
        "edit_type": np.array(["replace", "style", "count", "season"])[triplets % 4],
        **scores,
        "sim_direction": rng.normal(0.2, 0.1, rows),
        "shift": rng.exponential(0.02, rows),
        "zoom": np.ones(rows),
        "outside": rng.exponential(0.05, rows),
        "contrast": rng.uniform(0, 0.4, rows),
        "burnt": rng.uniform(0, 1, rows),
        "hash_0": rng.integers(-(2**62), 2**62, rows),
        "hash_1": rng.integers(-(2**62), 2**62, rows),
        "hash_clip": rng.integers(-(2**62), 2**62, rows),
    }
    write_shard(path, pa.table(columns), "benchmark")
    return path


if __name__ == "__main__":
    main()
