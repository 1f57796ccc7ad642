"""Pre-rendered scenes for pretraining: uint8 shards on disk, so that drawing never starves a trainer.

Scene number i of a corpus is a pure function of (seed, i); so is its picture. Shards are skipped when present.
"""

from __future__ import annotations

import os
import random
from collections.abc import Callable, Iterable
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import dataclass
from multiprocessing import get_context
from pathlib import Path

import numpy as np
import numpy.typing as npt

from ip2p.world.render import render
from ip2p.world.scenes import Scene, sample_scene

SHARD = 2048


@dataclass(frozen=True)
class Corpus:
    """`pictures_NHW3` uint8 (memory-mapped shards) and the scene of each number."""

    seed: int
    shards: tuple[npt.NDArray[np.uint8], ...]

    def __len__(self) -> int:
        return len(self.shards) * SHARD

    def picture(self, index: int) -> npt.NDArray[np.uint8]:
        """Picture number `index`, HW3."""
        picture: npt.NDArray[np.uint8] = self.shards[index // SHARD][index % SHARD]
        return picture

    def pictures(self, numbers: Iterable[int]) -> npt.NDArray[np.uint8]:
        """Pictures of these numbers, NHW3."""
        return np.stack([self.picture(i) for i in numbers])

    def scene(self, index: int) -> Scene:
        """Scene number `index`."""
        return scene_of(self.seed, index)


def scene_of(seed: int, index: int) -> Scene:
    """Scene number `index` of the corpus with this seed."""
    return sample_scene(random.Random(f"{seed}/{index}"))


def build_corpus(
    folder: Path, *, seed: int, count: int, size: int, workers: int = 1, progress: Callable[[int], None] = lambda n: None
) -> Corpus:
    """Render `count` scenes (rounded up to whole shards) into `folder`, or open what is there already."""
    folder.mkdir(parents=True, exist_ok=True)
    shards = -(-count // SHARD)
    paths = [folder / f"{seed}-{size}-{i:05d}.npy" for i in range(shards)]
    jobs = [(path, seed, i, size) for i, path in enumerate(paths) if not path.exists()]
    if not jobs:
        return Corpus(seed, tuple(np.load(path, mmap_mode="r") for path in paths))
    with ProcessPoolExecutor(min(workers, len(jobs)), get_context("spawn")) as pool:
        for done, job in enumerate(as_completed([pool.submit(_render_shard, j) for j in jobs]), 1):
            job.result()
            progress(done * SHARD)
    return Corpus(seed, tuple(np.load(path, mmap_mode="r") for path in paths))


def _render_shard(job: tuple[Path, int, int, int]) -> None:
    path, seed, shard, size = job
    first = shard * SHARD
    pictures = np.stack([np.asarray(render(scene_of(seed, i), seed=i, size=size)) for i in range(first, first + SHARD)])
    temporary = path.with_suffix(f".{os.getpid()}.tmp")
    with temporary.open("wb") as file:
        np.save(file, pictures)
        file.flush()
        os.fsync(file.fileno())
    temporary.replace(path)
