import resource
import signal

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from ip2p import store
from ip2p.errors import DataError, UserError
from ip2p.store import (
    assemble,
    digest,
    fingerprint,
    read_json,
    read_shard,
    read_shards,
    replace_folder,
    shard_mark,
    write_bytes,
    write_shard,
)


def test_a_shard_carries_its_fingerprint_and_the_same_bytes_each_time(tmp_path):
    table = pa.table({"x": [1, 2, 3]})
    write_shard(tmp_path / "a.parquet", table, "mark")
    write_shard(tmp_path / "b" / "a.parquet", table, "mark")
    assert shard_mark(tmp_path / "a.parquet") == "mark"
    assert digest(tmp_path / "a.parquet") == digest(tmp_path / "b" / "a.parquet")


def test_a_truncated_shard_has_no_mark_and_is_named(tmp_path):
    path = tmp_path / "pairs-00000.parquet"
    write_shard(path, pa.table({"x": list(range(1000))}), "mark")
    path.write_bytes(path.read_bytes()[:-20])
    assert shard_mark(path) is None
    with pytest.raises(DataError, match=r"pairs-00000\.parquet: cannot be read.*delete it"):
        read_shards(tmp_path)


def test_a_failed_write_leaves_the_old_file(tmp_path, monkeypatch):
    path = tmp_path / "x.json"
    write_bytes(path, b"old")
    monkeypatch.setattr("os.fsync", lambda fd: (_ for _ in ()).throw(OSError("disk full")))
    with pytest.raises(OSError, match="disk full"):
        write_bytes(path, b"new")
    assert path.read_bytes() == b"old"


def test_assemble_replaces_what_was_there(tmp_path):
    part, out = tmp_path / "part.parquet", tmp_path / "out"
    part.write_bytes(b"x")
    out.mkdir()
    (out / "stranger.parquet").write_bytes(b"y")
    assemble(out, [part])
    assert [p.name for p in out.iterdir()] == ["part.parquet"]


def test_fingerprints_depend_on_content_not_on_key_order():
    assert fingerprint({"a": 1, "b": 2}) == fingerprint({"b": 2, "a": 1}) != fingerprint({"a": 1, "b": 3})


def test_broken_json_names_the_line(tmp_path):
    path = tmp_path / "x.json"
    path.write_text('{"a": 1,\n oops}')
    with pytest.raises(DataError, match=r"x\.json:2: not valid JSON"):
        read_json(path)


def test_a_folder_is_replaced_whole_even_where_a_kill_left_the_old_one_aside(tmp_path):
    out = tmp_path / "deep" / "out"
    for text in ("first", "second"):
        (tmp_path / "new").mkdir()
        (tmp_path / "new" / text).write_text(text)
        replace_folder(tmp_path / "new", out)
        (out.parent / ".out.old").mkdir()
    assert [p.name for p in out.iterdir()] == ["second"]
    assert not (tmp_path / "new").exists()


def test_a_disk_that_takes_no_more_is_told_in_one_line_and_the_old_file_stays(tmp_path):
    write_bytes(tmp_path / "report.json", b"old")
    limits, handler = resource.getrlimit(resource.RLIMIT_FSIZE), signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (64, limits[1]))  # the kernel refuses the write, as a full disk does
    try:
        with pytest.raises(UserError, match=r"report\.json: cannot be written .* make room"):
            write_bytes(tmp_path / "report.json", b"x" * 1000)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
        signal.signal(signal.SIGXFSZ, handler)
    assert [p.read_bytes() for p in tmp_path.iterdir()] == [b"old"]


def test_what_is_not_there_has_no_digest(tmp_path):
    with pytest.raises(DataError, match=r"nowhere: no such file or folder"):
        digest(tmp_path / "nowhere")


def test_a_shard_larger_than_readers_take_at_once_has_smaller_groups(tmp_path, monkeypatch):
    table = pa.table({"picture": [bytes(1000)] * 40})
    write_shard(tmp_path / "small.parquet", table, "m")
    monkeypatch.setattr(store, "_MOST_A_GROUP", 10_500)
    write_shard(tmp_path / "large.parquet", table, "m")
    assert [pq.ParquetFile(tmp_path / n).num_row_groups for n in ("small.parquet", "large.parquet")] == [1, 4]
    assert read_shard(tmp_path / "large.parquet").equals(table)
