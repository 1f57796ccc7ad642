import io
import json
import shutil
import tarfile
from collections import Counter
from dataclasses import asdict, replace
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from ip2p.cli import main
from ip2p.dataset import filter, validate
from ip2p.dataset.exchange import folders, hf, move, reference, webdataset
from ip2p.dataset.exchange.example import from_row, read_dataset, split_named
from ip2p.dataset.exchange.move import LAYOUTS, export_dataset, import_pairs, lint
from ip2p.dataset.trace import trace
from ip2p.errors import DataError
from ip2p.model.heldout import held_out
from ip2p.model.measure import Meter, Point, judged_by, measure
from ip2p.params import FilterParams
from ip2p.pictures import from_bytes
from ip2p.store import read_shards
from tests.conftest import ROOT


@pytest.mark.parametrize("layout", LAYOUTS)
def test_a_dataset_goes_out_and_comes_back(tiny, made, tmp_path, layout):
    ours = list(read_dataset(made / "dataset"))
    assert export_dataset(made / "dataset", layout, tmp_path / "out") == len(ours)
    assert lint(tmp_path / "out", layout) == []
    assert import_pairs(tmp_path / "out", layout, tmp_path / "pairs", tiny).kept == len(ours)
    table = read_shards(tmp_path / "pairs")
    key = ("original_prompt", "edit_prompt", "edited_prompt", "triplet_id")
    assert sorted(zip(*(table[k].to_pylist() for k in key), strict=True)) == sorted(tuple(getattr(e, k) for k in key) for e in ours)
    known = {(e.triplet_id, e.seed): e.original_image for e in ours}
    for row in table.to_pylist():
        if layout not in ("reference", "magicbrush"):  # JPEG there, no seed there
            assert row["original_image"]["bytes"] == known[row["triplet_id"], row["seed"]]
        if layout == "reference":
            before, after = (from_bytes(x, where="") for x in (row["original_image"]["bytes"], known[row["triplet_id"], row["seed"]]))
            assert (before - after).abs().mean() < 0.02
    report = filter.run(tiny, pairs=tmp_path / "pairs", out=tmp_path / "dataset", work=tmp_path / "work")
    assert report.kept > 0


def test_hugging_face_datasets_reads_the_export(made, tmp_path):
    from datasets import load_dataset

    export_dataset(made / "dataset", "hf", tmp_path / "out")
    found = load_dataset(str(tmp_path / "out"), cache_dir=str(tmp_path / "cache"))
    ours = list(read_dataset(made / "dataset"))
    assert {s: len(d) for s, d in found.items()} == {s: sum(e.split == s for e in ours) for s in {e.split for e in ours}}
    assert found["train"][0]["edited_image"].size == (96, 96)
    assert list(found["train"].features)[:5] == ["original_prompt", "original_image", "edit_prompt", "edited_prompt", "edited_image"]


def test_the_reference_layout_keeps_a_triplet_in_one_folder_and_split(made, tmp_path):
    export_dataset(made / "dataset", "reference", tmp_path / "out")
    seeds = json.loads((tmp_path / "out" / "seeds.json").read_text())
    ours = list(read_dataset(made / "dataset"))
    assert len(seeds) == len({e.triplet_id for e in ours}) and sum(len(s) for _, s in seeds) == len(ours)
    prompt = json.loads((tmp_path / "out" / seeds[0][0] / "prompt.json").read_text())
    assert prompt["caption"] == prompt["input"] and {"edit", "output", "split"} <= set(prompt)
    assert (tmp_path / "out" / seeds[0][0] / f"{seeds[0][1][0]}_1.jpg").read_bytes()[:2] == b"\xff\xd8"


def hostile(folder, name="x.0.png", **changes):
    folder.mkdir()
    with tarfile.open(folder / "train-00000.tar", "w") as tar:
        member = tarfile.TarInfo(name)
        member.size = 4
        for k, v in changes.items():
            setattr(member, k, v)
        tar.addfile(member, io.BytesIO(b"abcd") if member.isreg() else None)
    return folder


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"name": "../../evil.0.png"}, "leaves its folder"),
        ({"name": "/etc/evil.0.png"}, "leaves its folder"),
        ({"type": tarfile.SYMTYPE, "linkname": "/etc/passwd", "size": 0}, "no regular file"),
        ({"type": tarfile.LNKTYPE, "linkname": "y", "size": 0}, "no regular file"),
        ({"type": tarfile.CHRTYPE, "size": 0}, "no regular file"),
        ({}, "is incomplete"),
    ],
)
def test_hostile_archives_are_refused(tiny, tmp_path, options, message):
    with pytest.raises(DataError, match=message):
        import_pairs(hostile(tmp_path / "tars", **options), "webdataset", tmp_path / "pairs", tiny)
    assert not (tmp_path / "pairs").exists()


def test_a_member_too_large_is_refused_before_it_is_read(tiny, tmp_path):
    (tmp_path / "tars").mkdir()
    member = tarfile.TarInfo("x.0.png")
    member.size = 2**40
    (tmp_path / "tars" / "a.tar").write_bytes(member.tobuf() + b"\0" * 1024)
    with pytest.raises(DataError, match="no regular file of at most 64 MiB"):
        import_pairs(tmp_path / "tars", "webdataset", tmp_path / "pairs", tiny)


def test_links_and_names_that_climb_out_of_a_folder_are_refused(tiny, made, tmp_path):
    out = tmp_path / "out"
    export_dataset(made / "dataset", "folders", out)
    lines = (out / "metadata.jsonl").read_text().splitlines()
    row = json.loads(lines[0])
    for name, message in (("../../../etc/passwd", "leaves its folder"), ("link.png", "not a regular file")):
        (out / "link.png").unlink(missing_ok=True)
        (out / "link.png").symlink_to("/etc/passwd")
        (out / "metadata.jsonl").write_text(json.dumps(row | {"original_image": name}))
        with pytest.raises(DataError, match=message):
            import_pairs(out, "folders", tmp_path / "pairs", tiny)


def test_lint_names_what_a_trainer_would_stumble_over(made, tmp_path):
    out = tmp_path / "out"
    export_dataset(made / "dataset", "folders", out)
    rows = [json.loads(x) for x in (out / "metadata.jsonl").read_text().splitlines()]
    first = next(r for r in rows if r["split"] == "train")
    (out / first["original_image"]).write_bytes(b"no picture")
    rows[-1]["edit_prompt"] = " "
    (out / "metadata.jsonl").write_text("".join(json.dumps(r) + "\n" for r in rows))
    problems = lint(out, "folders")
    assert any(first["pair_id"] in p and "not a whole picture" in p for p in problems) and any("no instruction" in p for p in problems)


def test_nothing_is_overwritten(made, tmp_path):
    (tmp_path / "out").mkdir()
    with pytest.raises(DataError, match="exists already"):
        export_dataset(made / "dataset", "hf", tmp_path / "out")


def test_a_triplets_pairs_stay_in_one_shard_and_equal_lengths_are_not_equal_pictures(tiny, made, tmp_path):
    out = tmp_path / "out"
    export_dataset(made / "dataset", "folders", out)
    row = json.loads((out / "metadata.jsonl").read_text().splitlines()[0])
    picture = (out / row["original_image"]).read_bytes()
    rows = []
    for n in range(70):
        (out / f"{n}.png").write_bytes(picture + bytes([n]))  # same length, other bytes; what follows a PNG's end is not looked at
        texts = {k: row[k] for k in ("original_prompt", "edit_prompt", "edited_prompt")}
        rows.append(texts | {"original_image": f"{n}.png", "edited_image": row["edited_image"], "triplet_id": f"t{n // 35}"})
    (out / "metadata.jsonl").write_text("".join(json.dumps(r) + "\n" for r in rows))
    assert import_pairs(out, "folders", tmp_path / "pairs", tiny).kept == 70
    assert len(set(read_shards(tmp_path / "pairs")["pair_id"].to_pylist())) == 70
    assert [len(read_shards(tmp_path / "pairs", p.stem)) for p in sorted((tmp_path / "pairs").glob("*.parquet"))] == [70]


@pytest.mark.parametrize(
    ("layout", "name", "data"),
    [
        ("folders", "metadata.jsonl", b"\xff\xfe"),
        ("folders", "metadata.jsonl", b"[]"),
        ("folders", "metadata.jsonl", b'{"original_image": 1, "edited_image": "b.png"}'),
        ("magicbrush", "train.parquet", b"PAR1 torn"),
        ("hf", "train.parquet", b"PAR1 torn"),
        ("webdataset", "train.tar", b"no tar"),
        ("reference", "seeds.json", b"{"),
    ],
)
def test_what_cannot_be_read_is_named(tiny, tmp_path, layout, name, data):
    (tmp_path / "in").mkdir()
    (tmp_path / "in" / name).write_bytes(data)
    with pytest.raises(DataError, match=name):
        import_pairs(tmp_path / "in", layout, tmp_path / "pairs", tiny)


def test_what_others_test_on_is_not_trained_on(made, tiny, tmp_path):
    rows = read_shards(made / "dataset", "train-").slice(0, 6)
    ids = rows["triplet_id"].to_pylist()
    test = rows.set_column(rows.schema.get_field_index("split"), "split", [["test" if i == ids[0] else "train" for i in ids]])
    (tmp_path / "hf" / "data").mkdir(parents=True)
    pq.write_table(test, tmp_path / "hf" / "data" / "all-00000-of-00001.parquet")
    report, left = import_pairs(tmp_path / "hf", "hf", tmp_path / "pairs", tiny), sum(i != ids[0] for i in ids)
    assert (report.seen, report.kept) == (len(ids), left)
    assert report.dropped_by_reason == {"for testing there, for training here": len(ids) - left}


def test_the_name_of_a_file_tells_the_split_where_no_column_does(made, tiny, tmp_path):
    rows = read_shards(made / "dataset", "train-").slice(0, 6).drop_columns(["split", "triplet_id"])
    (tmp_path / "hf" / "data").mkdir(parents=True)
    for name, some in (("train-00000-of-00001", rows.slice(0, 2)), ("test-00000-of-00001", rows.slice(2, 3)), ("dev", rows.slice(5))):
        pq.write_table(some, tmp_path / "hf" / "data" / f"{name}.parquet")
    names = {"a/test/0000.parquet": "test", "emu_test.parquet": "test", "eval-0-of-1.parquet": "test", "x/train/valid0.tar": "validation"}
    assert {name: split_named(Path(name)) for name in names} == names
    assert split_named(Path("attest/contest.parquet")) is None
    assert Counter(e.split for e in hf.read(tmp_path / "hf")) == {"train": 2, "test": 3, "validation": 1}
    (tmp_path / "test").mkdir()  # the user's own folder says nothing
    pq.write_table(rows, tmp_path / "test" / "pairs.parquet")
    assert {e.split for e in hf.read(tmp_path / "test")} == {"train"}


def test_pairs_of_one_seed_all_leave_in_the_references_layout(made, tmp_path):
    example = next(read_dataset(made / "dataset"))
    same = [replace(example, pair_id=f"p{n}", seed=0) for n in range(3)]
    assert reference.write(same, tmp_path / "out") == 3
    assert len(list(reference.read(tmp_path / "out"))) == 3
    assert len(list((tmp_path / "out").rglob("*_1.jpg"))) == 3


def test_numbers_may_be_ids_and_texts_seeds_if_they_are_numbers(made):
    row = asdict(next(read_dataset(made / "dataset")))
    example = from_row(row | {"pair_id": 17, "triplet_id": 3, "edit_type": 5, "seed": "12"}, "here")
    assert (example.pair_id, example.triplet_id, example.edit_type, example.seed) == ("17", "3", "5", 12)
    with pytest.raises(DataError, match="here: seed 'many' is no whole number"):
        from_row(row | {"seed": "many"}, "here")


def turns(made, out, *, missing):
    """The dataset as people's edits come: two turns a picture, some captions missing."""
    export_dataset(made / "dataset", "magicbrush", out)
    files = sorted(out.glob("*.parquet"))
    rows = pa.concat_tables(pq.read_table(file).drop_columns(["pair_id", "triplet_id"]) for file in files).to_pylist()
    for file in files:
        file.unlink()
    for n, row in enumerate(rows):
        row |= {"img_id": str(n // 2), "turn_index": n % 2 + 1, "split": "train"} | dict.fromkeys(missing)
    pq.write_table(pa.Table.from_pylist(rows), out / "train.parquet")
    return rows


def test_edits_by_people_need_no_captions_and_each_turn_is_an_edit_of_its_own(made, tiny, clip, tmp_path):
    rows = turns(made, tmp_path / "out", missing=("source_caption", "target_caption"))
    assert import_pairs(tmp_path / "out", "magicbrush", tmp_path / "pairs", tiny).kept == len(rows)
    scores = read_shards(tmp_path / "pairs")
    assert all(scores[n].null_count == len(rows) for n in ("sim_0", "sim_1", "sim_direction")) and scores["sim_image"].null_count == 0

    strict = FilterParams(caption=0.99, direction=0.99, image=-1, copy=1, shift=1, outside=1, keep=1, splits=(0.1, 0.4))
    params = tiny.model_copy(update={"filter": strict})
    report = filter.run(params, pairs=tmp_path / "pairs", out=tmp_path / "dataset", work=tmp_path / "work")
    asked = {(r["img_id"], r["instruction"]) for r in rows}
    assert report.kept == len(asked)
    places = {"docs": tmp_path / "docs", "marker": tmp_path / "ok.json", "work": tmp_path / "work"}
    checked = validate.run(params, dataset=tmp_path / "dataset", **places)
    assert checked.extra["without_captions"] == report.kept
    assert "sim_image" in "".join(trace(scores["pair_id"][0].as_py(), triplets=tmp_path, pairs=tmp_path / "pairs", dataset=tmp_path))

    held = held_out(
        params.model_copy(update={"evaluate": params.evaluate.model_copy(update={"held_out": "dataset"})}),
        triplets=tmp_path,
        dataset=tmp_path / "dataset",
        size=96,
    )
    assert held.by_target
    source, target = (Point("system", {}, measure(held, Meter(clip), pictures, batch=4)) for pictures in (held.sources, held.targets))
    assert judged_by(target.rows) == "direction_similarity" and "text_similarity" not in target.rows
    assert (source.mean("direction_similarity"), target.mean("direction_similarity")) == pytest.approx((0, 1), abs=1e-4)


def test_one_caption_of_two_is_refused(made, tiny, tmp_path):
    turns(made, tmp_path / "out", missing=("target_caption",))
    with pytest.raises(DataError, match="has one caption; caption both pictures, or neither"):
        import_pairs(tmp_path / "out", "magicbrush", tmp_path / "pairs", tiny)
    assert not (tmp_path / "pairs").exists()


def test_pairs_without_captions_are_told_apart_by_their_picture(made):
    example = next(read_dataset(made / "dataset"))
    bare = replace(example, original_prompt="", edited_prompt="", triplet_id="")
    other, asked = replace(bare, original_image=example.edited_image), replace(bare, edit_prompt="make it night")
    assert bare.identified().triplet_id == asked.identified().triplet_id != other.identified().triplet_id


def test_captions_of_one_picture_lie_in_one_split(made, tiny, tmp_path):
    ours = list(read_dataset(made / "dataset"))[:2]
    rows = [replace(e, triplet_id="t", pair_id=f"p{i}-{e.seed}", original_prompt=f"caption {e.seed} {i}") for i in range(3) for e in ours]
    folders.write(iter(rows), tmp_path / "in")
    told = tmp_path / "in" / "metadata.jsonl"
    bare = [json.loads(line) | {"triplet_id": None, "pair_id": None} for line in told.read_text().splitlines()]
    told.write_text("".join(json.dumps(row) + "\n" for row in bare))
    assert import_pairs(tmp_path / "in", "folders", tmp_path / "pairs", tiny).kept == 6
    table = read_shards(tmp_path / "pairs").to_pylist()
    assert len({r["original_prompt"] for r in table}) == 6 and len({r["pair_id"] for r in table}) == 6
    of_picture = {r["original_image"]["bytes"]: set() for r in table}
    for r in table:
        of_picture[r["original_image"]["bytes"]].add(r["triplet_id"])
    assert [len(x) for x in of_picture.values()] == [1, 1]


def test_what_is_imported_stands_in_for_the_stage_of_pairs(made, tmp_path, monkeypatch):
    export_dataset(made / "dataset", "folders", tmp_path / "out")
    monkeypatch.chdir(tmp_path)
    assert main(["--params", str(ROOT / "params.yaml"), "import", "--from", "folders", "out"]) == 0
    report = json.loads((tmp_path / "reports/pairs.json").read_text())
    assert (report["stage"], report["kept"]) == ("pairs", len(read_shards(tmp_path / "data/pairs")))
    (tmp_path / "reports/pairs.json").unlink()
    assert main(["--params", str(ROOT / "params.yaml"), "import", "--from", "folders", "out", "-o", "elsewhere"]) == 0
    assert not (tmp_path / "reports/pairs.json").exists()


def test_edits_of_one_picture_leave_in_the_references_layout_each_with_its_own_instruction(made, tiny, tmp_path):
    turns(made, tmp_path / "in", missing=("source_caption", "target_caption"))
    import_pairs(tmp_path / "in", "magicbrush", tmp_path / "pairs", tiny)
    examples = [from_row(row, "") for row in read_shards(tmp_path / "pairs").to_pylist()]
    reference.write(examples, tmp_path / "out")
    back = list(reference.read(tmp_path / "out"))
    assert sorted((e.triplet_id, e.edit_prompt) for e in back) == sorted((e.triplet_id, e.edit_prompt) for e in examples)


def test_an_import_that_was_killed_goes_on_and_gives_the_scores_of_the_pairs_that_were_made(made, tiny, tmp_path, monkeypatch):
    export_dataset(made / "dataset", "hf", tmp_path / "hf")
    monkeypatch.setattr(move, "_SHARD", 4)
    scored, calls = move._scored, []

    def killed(examples, *models):
        calls.append(len(examples))
        if len(calls) == 3:
            raise KeyboardInterrupt
        return scored(examples, *models)

    monkeypatch.setattr(move, "_scored", killed)
    with pytest.raises(KeyboardInterrupt):
        import_pairs(tmp_path / "hf", "hf", tmp_path / "pairs", tiny)
    assert not (tmp_path / "pairs").exists()
    report = import_pairs(tmp_path / "hf", "hf", tmp_path / "pairs", tiny)
    assert sum(calls) == report.kept + calls[2]  # each shard was scored once, but the one that was cut short
    ours = {r["pair_id"]: r for r in read_shards(made / "pairs").to_pylist()}
    for row in read_shards(tmp_path / "pairs").to_pylist():
        for name in ("sim_0", "sim_image", "sim_direction", "outside"):
            assert row[name] == pytest.approx(ours[row["pair_id"]][name], abs=0.01)


def test_an_import_goes_on_with_what_is_there_now_whatever_the_ids(made, tiny, tmp_path, monkeypatch):
    examples = [replace(e, edit_type="old") for e in read_dataset(made / "dataset")]
    folders.write(examples, tmp_path / "source")
    monkeypatch.setattr(move, "replace_folder", lambda *paths: 1 / 0)  # killed at its end
    with pytest.raises(ZeroDivisionError):
        import_pairs(tmp_path / "source", "folders", tmp_path / "pairs", tiny)
    monkeypatch.undo()
    shutil.rmtree(tmp_path / "source")
    folders.write([replace(e, edit_type="new") for e in examples], tmp_path / "source")
    import_pairs(tmp_path / "source", "folders", tmp_path / "pairs", tiny)
    assert set(read_shards(tmp_path / "pairs")["edit_type"].to_pylist()) == {"new"}


def test_the_card_tells_whose_pairs_they_are_and_claims_no_licence(made, tiny, tmp_path):
    export_dataset(made / "dataset", "hf", tmp_path / "hf")
    card = (tmp_path / "hf" / "README.md").read_text()
    assert "pairs made by ip2p" in card and "brought in" not in card and "license" not in card
    import_pairs(tmp_path / "hf", "hf", tmp_path / "pairs", tiny)
    assert filter.run(tiny, pairs=tmp_path / "pairs", out=tmp_path / "dataset", work=tmp_path / "work").kept > 0
    export_dataset(tmp_path / "dataset", "hf", tmp_path / "again")
    card = (tmp_path / "again" / "README.md").read_text()
    assert "pairs made by ip2p" not in card and "pairs brought in from elsewhere" in card


def test_pairs_of_two_sizes_are_left_out_and_captions_may_be_null(made, tiny, tmp_path):
    rows = read_shards(made / "dataset", "train-").slice(0, 4).select([*hf.SCHEMA.names[:5]]).to_pylist()
    for row in rows:
        row |= {"original_prompt": None, "edited_prompt": None}
    small = io.BytesIO()
    Image.new("RGB", (40, 40)).save(small, "PNG")
    rows[0]["edited_image"]["bytes"] = small.getvalue()
    (tmp_path / "hf").mkdir()
    pq.write_table(pa.Table.from_pylist(rows), tmp_path / "hf" / "pairs.parquet")
    report = import_pairs(tmp_path / "hf", "hf", tmp_path / "pairs", tiny)
    assert report.dropped_by_reason == {"the two pictures differ in size": 1} and report.kept == 3


def test_a_triplet_whose_pairs_lie_apart_is_told(made, tiny, tmp_path, monkeypatch):
    example = next(read_dataset(made / "dataset"))
    order = [replace(example, pair_id=f"p{n}", triplet_id=f"t{n % 4}") for n in range(8)]
    hf.write(order, tmp_path / "hf")
    monkeypatch.setattr(move, "_SHARD", 4)
    assert import_pairs(tmp_path / "hf", "hf", tmp_path / "pairs", tiny).extra["triplets_in_several_shards"] == 4


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ({"edit_prompt": "half \ud83d"}, "holds half a character"),
        ({"edit_type": "\ud800"}, "holds half a character"),
        ({"edit_type": "x" * 200}, "has 200 characters"),
        ({"seed": 2**70}, "is out of range"),
    ],
)
def test_what_no_table_takes_is_named(made, row, message):
    with pytest.raises(DataError, match=f"here: .*{message}"):
        from_row(asdict(next(read_dataset(made / "dataset"))) | row, "here")


def test_tars_with_folders_are_read_and_such_that_swell_are_not(made, tiny, tmp_path):
    export_dataset(made / "dataset", "webdataset", tmp_path / "out")
    one = sorted((tmp_path / "out").glob("train-*.tar"))[0]
    (tmp_path / "in").mkdir()
    with tarfile.open(one) as old, tarfile.open(tmp_path / "in" / "v1.tar", "w") as new:
        folder = tarfile.TarInfo("./v1.0")
        folder.type = tarfile.DIRTYPE
        new.addfile(folder)
        for member in old:
            data = old.extractfile(member)
            member.name = f"./v1.0/{member.name}"
            new.addfile(member, data)
        count = len(old.getnames()) // 3
    assert import_pairs(tmp_path / "in", "webdataset", tmp_path / "pairs", tiny).kept == count
    with tarfile.open(tmp_path / "in" / "v1.tar", "w") as new:
        for n in range(5):
            member = tarfile.TarInfo(f"{n}.0.png")
            member.size = 60 * 2**20
            new.addfile(member, io.BytesIO(bytes(member.size)))
    assert "5 incomplete examples" in lint(tmp_path / "in", "webdataset")[0]


def test_a_broken_picture_costs_no_import_and_is_told_with_its_row(tiny, made, tmp_path, capsys):
    hf.write(read_dataset(made / "dataset"), tmp_path / "hf")
    path = min((tmp_path / "hf" / "data").glob("train-*.parquet"))
    rows = pq.read_table(path).to_pylist()
    rows[0]["original_image"]["bytes"] = rows[0]["original_image"]["bytes"][:200]
    rows[2]["edited_image"]["bytes"] = b""
    rows[3] |= {"edit_prompt": " ", "pair_id": None}
    pq.write_table(pa.Table.from_pylist(rows, schema=hf.SCHEMA), path)
    problems = lint(tmp_path / "hf", "hf")
    assert len([p for p in problems if "not a whole picture" in p]) == 2 and any("no instruction" in p for p in problems)
    report = import_pairs(tmp_path / "hf", "hf", tmp_path / "pairs", tiny)
    assert report.dropped_by_reason["a picture is missing or broken"] == 2
    told = capsys.readouterr().err
    assert f"{path}: row 1: not a whole picture" in told and f"{path}: row 3: not a whole picture" in told


@pytest.mark.parametrize("layout", [folders, reference])
def test_a_missing_picture_costs_no_import(tiny, made, tmp_path, layout):
    layout.write(read_dataset(made / "dataset"), tmp_path / "in")
    name = layout.__name__.rpartition(".")[2]
    gone = [p for p in sorted((tmp_path / "in").rglob("*")) if p.suffix in (".jpg", ".png")][:1]
    gone[0].unlink()
    assert sum("not a whole picture" in problem for problem in lint(tmp_path / "in", name)) == 1
    report = import_pairs(tmp_path / "in", name, tmp_path / "pairs", tiny)
    assert report.dropped_by_reason["a picture is missing or broken"] == 1 and report.kept > 10


def test_a_tar_that_ends_before_its_end_is_refused(tiny, made, tmp_path):
    export_dataset(made / "dataset", "webdataset", tmp_path / "whole")
    (whole,) = (p for p in (tmp_path / "whole").glob("train-*.tar"))
    with tarfile.open(whole) as tar:
        members = tar.getmembers()
    data, middle = whole.read_bytes(), members[6].offset
    spoilt = {
        "flipped": (data[: middle + 5] + bytes([data[middle + 5] ^ 1]) + data[middle + 6 :], "damaged or cut short"),
        "cut": (data[:middle], "damaged or cut short"),
        "joined": (data + data, "goes on after its end"),
    }
    for name, (content, told) in spoilt.items():
        (tmp_path / name).mkdir()
        (tmp_path / name / "train.tar").write_bytes(content)
        with pytest.raises(DataError, match=rf"train\.tar: {told}"):
            import_pairs(tmp_path / name, "webdataset", tmp_path / "pairs", tiny)


def test_what_macos_adds_to_a_tar_is_passed_over(made, tmp_path):
    export_dataset(made / "dataset", "webdataset", tmp_path / "out")
    count = len(list(webdataset.read(tmp_path / "out")))
    path = min((tmp_path / "out").glob("*.tar"))
    with tarfile.open(path, "a") as tar:
        for name in (".DS_Store", "folder/._a.0.png"):
            tar.addfile(tarfile.TarInfo(name), io.BytesIO())
    assert len(list(webdataset.read(tmp_path / "out"))) == count


def test_many_pairs_of_one_triplet_are_measured_some_at_a_time(tiny, made, tmp_path, monkeypatch):
    monkeypatch.setattr(move, "_SHARD", 4)
    examples = [replace(e, triplet_id="t", pair_id=f"p{n}") for n, e in enumerate(read_dataset(made / "dataset", splits=("train",)))]
    hf.write(examples, tmp_path / "hf")
    measured, most = move._measured, []
    monkeypatch.setattr(move, "_measured", lambda some, *models: (most.append(len(some)), measured(some, *models))[1])
    report = import_pairs(tmp_path / "hf", "hf", tmp_path / "pairs", tiny)
    assert report.kept == len(examples) > 4 == max(most) and len(list((tmp_path / "pairs").glob("*.parquet"))) == 1
