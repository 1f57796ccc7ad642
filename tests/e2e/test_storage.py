"""Data in a real S3 endpoint, and what happens between it and us: errors, cut connections, slowness."""

from __future__ import annotations

import hashlib
import json
import random
import shutil
import subprocess
import sys

import fsspec
import pyarrow as pa
import pytest
import torch
import yaml
from safetensors.torch import load_file

from infra import local
from ip2p.dataset import validate
from ip2p.errors import DataError
from ip2p.model import train
from ip2p.params import StorageParams
from ip2p.remote import open_validated
from ip2p.store import digest, read_shard, read_shards, shard_bytes, shards
from tests.faults import Faults, faulty
from tests.services import here, service

pytestmark = pytest.mark.skipif(not here("s3"), reason="no weed: pip install 'ip2p[infra]'")
BAD = {"errors": 0.2, "lost": 0.05, "cut": 0.1}


@pytest.fixture(scope="module")
def s3():
    with service("s3") as topology, pytest.MonkeyPatch.context() as patch:
        for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_DEFAULT_REGION"):
            patch.setenv(name, topology.environment()[name])
        yield topology


@pytest.fixture(scope="module")
def project(tiny, made, tmp_path_factory):
    """A folder with the dataset, validated, as DVC has it after the stages ran."""
    home = tmp_path_factory.mktemp("project")
    shutil.copytree(made / "dataset", home / "data/dataset")
    validate.run(tiny, dataset=home / "data/dataset", docs=home / "docs", marker=home / "data/validated.json", work=home / "work")
    stages = {
        "filter": {"cmd": "true", "outs": ["data/dataset"]},
        "validate": {"cmd": "true", "deps": ["data/dataset"], "outs": ["data/validated.json"]},
    }
    (home / "dvc.yaml").write_text(yaml.safe_dump({"stages": stages}))
    dvc(home, "init", "--no-scm")
    dvc(home, "commit", "--force")
    return home


def dvc(home, *arguments, tries=1):
    for _ in range(tries):
        done = subprocess.run([sys.executable, "-m", "dvc", *arguments], cwd=home, capture_output=True, text=True, timeout=200)
        if done.returncode == 0:
            return
    raise AssertionError(done.stderr[-2000:])


def point(home, url):
    dvc(home, "remote", "add", "--force", "--default", "s3", f"s3://{local.BUCKET}/dvc")
    dvc(home, "remote", "modify", "s3", "endpointurl", url)


def files(folder):
    return {str(p.relative_to(folder)): hashlib.md5(p.read_bytes()).hexdigest() for p in folder.rglob("*") if p.is_file()}


def opened(home, url, cache, **section):
    storage = StorageParams.model_validate({"remote": f"s3://{local.BUCKET}/dvc", "endpoint": url} | section)
    paths = {"dataset": home / "data/dataset", "marker": home / "data/validated.json"}
    paths = {n: p.relative_to(home) for n, p in paths.items()}
    return open_validated(storage, lock=home / "dvc.lock", cache=cache, **paths)


@pytest.mark.timeout(600)
def test_a_third_of_the_requests_spoilt_and_nothing_is_lost_or_half_there(s3, project, tiny, tmp_path, track_in):
    tiny = tiny.model_copy(update={"track": track_in(tmp_path)})
    faults = Faults(**BAD, pause=0.005)
    with faulty(s3.ports["s3"], faults) as url:
        point(project, url)
        dvc(project, "push", tries=4)  # as the flow does, which tries a push again three times
        second = tmp_path / "second"
        second.mkdir()
        for name in ("dvc.yaml", "dvc.lock", ".dvc/config"):
            (second / name).parent.mkdir(exist_ok=True)
            shutil.copyfile(project / name, second / name)
        dvc(second, "pull", tries=4)
        assert faults.spoilt > 10
        assert files(second / "data") == files(project / "data")
        for path in (second / ".dvc/cache/files/md5").rglob("*"):
            assert not path.is_file() or path.parent.name + path.name.removesuffix(".dir") == hashlib.md5(path.read_bytes()).hexdigest()

        # trained straight from the bucket, through the same faults: the editor that the files here give
        faults.spoilt = 0
        dataset, marker = opened(project, url, tmp_path / "cache")
        train.run(tiny, dataset=dataset, marker=marker, out=tmp_path / "streamed", work=tmp_path / "w1")
        assert faults.spoilt > 0
    train.run(tiny, dataset=project / "data/dataset", marker=project / "data/validated.json", out=tmp_path / "here", work=tmp_path / "w2")
    weights = [load_file(tmp_path / n / "unet/diffusion_pytorch_model.safetensors") for n in ("streamed", "here")]
    assert all(torch.equal(weights[0][k], weights[1][k]) for k in weights[1])
    records = [json.loads((tmp_path / n / "training.json").read_text()) for n in ("streamed", "here")]
    assert records[0] == records[1]
    assert not list((tmp_path / "cache").glob(".*"))


def test_columns_are_read_in_ranges_and_the_cache_keeps_its_bounds(s3, project, tmp_path):
    faults = Faults()
    with faulty(s3.ports["s3"], faults) as url:
        point(project, url)
        dvc(project, "push")
        dataset, _ = opened(project, url, tmp_path / "cache")
        texts = read_shards(dataset, columns=["edit_prompt"])
        assert texts.equals(read_shards(project / "data/dataset", columns=["edit_prompt"]))

        rng = random.Random(0)
        large = pa.table({"image": [rng.randbytes(100_000) for _ in range(40)], "text": [f"edit {i}" for i in range(40)]})
        data = shard_bytes(large, "mark")
        shard = dataset.files[0].bucket.file("large.parquet", hashlib.md5(data).hexdigest())
        fsspec.filesystem("s3", endpoint_url=url).pipe_file(shard.bucket.address(shard.md5), data)
        faults.sent = 0
        assert read_shard(shard, columns=["text"])["text"].to_pylist() == large["text"].to_pylist()
        assert faults.sent < len(data) / 20

        bound = 2 * max(p.stat().st_size for p in shards(project / "data/dataset"))
        small, _ = opened(project, url, tmp_path / "small", cache_gb=bound / 1e9)
        for ours, theirs in zip(shards(small), shards(project / "data/dataset"), strict=True):
            assert read_shard(ours).equals(read_shard(theirs))
            assert sum(p.stat().st_size for p in (tmp_path / "small").iterdir()) <= bound
        faults.requests = 0
        read_shard(shards(small)[-1])  # from the cache
        assert faults.requests == 0
        assert digest(dataset) == digest(project / "data/dataset")


def test_what_is_wrong_with_a_bucket_is_said(s3, project, tmp_path, monkeypatch):
    url = s3.url("s3")
    point(project, url)
    dvc(project, "push")
    dataset, _ = opened(project, url, tmp_path / "cache")
    shard = shards(dataset)[0]
    bucket = fsspec.filesystem("s3", endpoint_url=url)
    address = shard.bucket.address(shard.md5)
    held = bucket.cat_file(address)
    bucket.pipe_file(address, held[:-100] + bytes(100))
    with pytest.raises(DataError, match=rf"{shard.name}: what s3://.* is broken"):
        read_shard(shard)
    bucket.rm_file(address)
    with pytest.raises(DataError, match=rf"{shard.name}: the bucket has it not"):
        read_shard(shard)
    lock = yaml.safe_load((project / "dvc.lock").read_text())
    lock["stages"]["validate"]["deps"][0]["md5"] = "0" * 32 + ".dir"
    other = tmp_path / "other"
    other.mkdir()
    (other / "dvc.lock").write_text(yaml.safe_dump(lock))
    with pytest.raises(DataError, match="data/dataset changed since it was validated"):
        opened(other, url, tmp_path / "cache")
    with pytest.raises(DataError, match="no such file; it names the version"):
        opened(tmp_path / "nowhere", url, tmp_path / "cache")
    monkeypatch.setattr("ip2p.remote._TRIES", 1)
    with pytest.raises(DataError, match=r"cannot be read from the bucket, 1 times \(Could not connect"):
        opened(project, "http://127.0.0.1:9", tmp_path / "cold")
    for remote in ("gs://bucket/dvc", "s4://bucket/dvc"):
        with pytest.raises(DataError, match=f"storage.remote: {remote} cannot be read here"):
            opened(project, url, tmp_path / "other kinds", remote=remote)
