import io
import json
import shutil

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from PIL import Image

from ip2p.dataset.exchange import magicbrush
from ip2p.dataset.exchange.move import export_dataset
from ip2p.errors import DataError
from ip2p.model.benchmarks import of_benchmark
from ip2p.model.measure import Meter, Point, measure
from ip2p.model.seen import NONE

SIZE = 96


@pytest.fixture(scope="module")
def meter(clip):
    return Meter(clip)


def measured(held, meter, edit):
    return Point("system", {}, measure(held, meter, edit, batch=2))


def png(colour, *, size=(80, 60), clear=None):
    """A picture of one colour; `clear` is a box that is transparent."""
    picture = Image.new("RGB", size, colour)
    if clear is not None:
        alpha = Image.new("L", size, 255)
        alpha.paste(0, clear)
        picture.putalpha(alpha)
    buffer = io.BytesIO()
    picture.save(buffer, "PNG")
    return buffer.getvalue()


def write_brush(folder, **masks):
    """MagicBrush's Parquet, two edits of red pictures into blue ones."""
    images = {"source_img": png("red"), "target_img": png("blue")} | masks
    cells = {n: {"bytes": data, "path": None} for n, data in images.items()}
    rows = [{"img_id": str(i), "turn_index": 1, "instruction": f"edit {i}", **cells} for i in range(2)]
    folder.mkdir(exist_ok=True)
    pq.write_table(pa.Table.from_pylist(rows), folder / "test.parquet")


@pytest.fixture
def benchmarks(tmp_path):
    """A folder of each layout, with two edits."""
    rows = [{"instruction": f"edit {i}", "task": "local"} for i in range(2)]
    emu = [r | {"image": {"bytes": png("red"), "path": None}, "input_caption": "a", "output_caption": "b"} for r in rows]
    (tmp_path / "emu_edit").mkdir()
    pq.write_table(pa.Table.from_pylist(emu), tmp_path / "emu_edit" / "test.parquet")
    write_brush(tmp_path / "magicbrush")
    pie = tmp_path / "pie_bench"
    (pie / "annotation_images" / "0").mkdir(parents=True)
    prompts = {"original_prompt": "a [red] wall", "editing_prompt": "a [blue] wall", "editing_instruction": "make it blue"}
    mapping = {}
    for i in range(2):
        (pie / "annotation_images" / "0" / f"{i}.png").write_bytes(png("red"))
        mapping[f"00{i}"] = prompts | {"image_path": f"0/{i}.png", "editing_type_id": "1"}
    (pie / "mapping_file.json").write_text(json.dumps(mapping))
    return tmp_path


def change_pie(benchmarks, **changes):
    file = benchmarks / "pie_bench" / "mapping_file.json"
    file.write_text(json.dumps({k: row | changes for k, row in json.loads(file.read_text()).items()}))
    return benchmarks / "pie_bench"


@pytest.fixture
def archive(tmp_path):
    """MagicBrush's test split as its authors give it out: two turns on one picture."""
    root = tmp_path / "MagicBrush-test"
    (root / "images" / "17").mkdir(parents=True)
    for name, colour in (("input", "red"), ("output1", "blue"), ("output2", "green")):
        (root / "images" / "17" / f"17-{name}.png").write_bytes(png(colour))
    for n in (1, 2):
        (root / "images" / "17" / f"17-mask{n}.png").write_bytes(png("red", clear=(0, 0, 40, 60)))
    turns = [
        {"input": "17-input.png", "mask": "17-mask1.png", "output": "17-output1.png", "instruction": "make it blue"},
        {"input": "17-output1.png", "mask": "17-mask2.png", "output": "17-output2.png", "instruction": "make it green"},
    ]
    (root / "edit_sessions.json").write_text(json.dumps({"17": turns}))
    told = {"17-input.png": "a red wall", "17-output1.png": "a blue wall", "17-output2.png": "a green wall"}
    (root / "global_descriptions.json").write_text(json.dumps({"17": told}))
    return root


@pytest.mark.parametrize(
    ("layout", "has"), [("magicbrush", {"l1"}), ("emu_edit", {"direction_similarity"}), ("pie_bench", {"direction_similarity"})]
)
def test_benchmarks_of_others_are_read_by_their_layout(benchmarks, layout, has, meter):
    held = of_benchmark(layout, benchmarks / layout, count=10, size=SIZE)
    assert len(held.edits) == 2
    assert held.sources(slice(0, 2)).shape == (2, 3, SIZE, SIZE)
    rows = measured(held, meter, held.sources).rows
    assert has | {"change", "outside"} <= rows.keys()
    assert "success" not in rows
    if layout == "pie_bench":
        assert held.edits[0].edited_caption == "a blue wall"


def test_of_a_benchmark_that_is_sorted_by_kind_all_kinds_are_drawn(benchmarks):
    pie = benchmarks / "pie_bench"
    (row,) = list(json.loads((pie / "mapping_file.json").read_text()).values())[:1]
    rows = {f"{i:03d}": row | {"editing_type_id": str(i // 10)} for i in range(100)}
    (pie / "mapping_file.json").write_text(json.dumps(rows))
    edits = of_benchmark("pie_bench", pie, count=40, size=SIZE).edits
    assert len({e.edit_type for e in edits}) > 7 and [e.id for e in edits] == sorted(e.id for e in edits)
    assert edits == of_benchmark("pie_bench", pie, count=40, size=SIZE).edits


def test_edits_of_a_benchmark_that_nothing_says_the_aim_of_are_left_out(benchmarks, meter, capsys):
    (file,) = (benchmarks / "emu_edit").rglob("*.parquet")
    rows = pq.read_table(file).to_pylist()
    for captions in ({"output_caption": ""}, {"input_caption": None}, {"output_caption": "a"}):
        pq.write_table(pa.Table.from_pylist([rows[0], rows[1] | captions]), file)
        held = of_benchmark("emu_edit", benchmarks / "emu_edit", count=10, size=SIZE)
        assert [e.instruction for e in held.edits] == ["edit 0"]
        assert "1 edits of" in capsys.readouterr().out
    assert "direction_similarity" in measured(held, meter, held.sources).rows


def test_a_benchmark_that_is_not_there_or_not_one_is_told(benchmarks):
    with pytest.raises(DataError, match="no folder"):
        of_benchmark("emu_edit", benchmarks / "nowhere", count=1, size=SIZE)
    with pytest.raises(DataError, match="not a row of Emu Edit"):
        of_benchmark("emu_edit", benchmarks / "magicbrush", count=1, size=SIZE)
    (benchmarks / "pie_bench" / "mapping_file.json").write_text('{"0": {"image_path": "../../secret"}}')
    with pytest.raises(DataError, match="0 lacks"):
        of_benchmark("pie_bench", benchmarks / "pie_bench", count=1, size=SIZE)


def test_pictures_above_the_benchmarks_folder_are_refused(benchmarks):
    folder = change_pie(benchmarks, image_path="../../secret.png")
    (benchmarks / "secret.png").write_bytes(png("red"))
    assert (folder / "annotation_images" / "../../secret.png").is_file()
    with pytest.raises(DataError, match="not a regular file inside"):
        of_benchmark("pie_bench", folder, count=1, size=SIZE)


def test_a_benchmark_is_measured_on_what_is_not_for_training(benchmarks, tmp_path):
    (tmp_path / "mixed").mkdir()
    table = pq.read_table(benchmarks / "magicbrush" / "test.parquet")
    for split in ("train", "dev"):
        ids = pa.array([f"{split}-{n}" for n in range(len(table))])
        pq.write_table(
            table.set_column(table.column_names.index("img_id"), "img_id", ids), tmp_path / "mixed" / f"{split}-00000-of-00001.parquet"
        )
    edits = of_benchmark("magicbrush", tmp_path / "mixed", count=10, size=SIZE).edits
    assert [e.id for e in edits] == [f"dev-{n}" for n in range(len(table))]
    seen = NONE.with_captions(["dev-0"])  # trained on, and known by its picture alone
    assert [e.id for e in of_benchmark("magicbrush", tmp_path / "mixed", count=10, size=SIZE, seen=seen).edits] == ["dev-1"]
    (tmp_path / "mixed" / "dev-00000-of-00001.parquet").unlink()
    with pytest.raises(DataError, match="is all for training"):
        of_benchmark("magicbrush", tmp_path / "mixed", count=10, size=SIZE)


def painted(held, columns):
    """A system that paints some columns of every source blue."""

    def edit(some):
        pictures = held.sources(some)
        pictures[..., columns] = torch.tensor([0.0, 0.0, 1.0])[:, None, None]
        return pictures

    return edit


def runs(columns):
    """PIE-Bench's mask of some columns."""
    return [n for row in range(512) for n in (row * 512 + columns.start, columns.stop - columns.start)]


@pytest.mark.parametrize("layout", ["magicbrush", "pie_bench"])
def test_what_lies_beyond_a_benchmarks_mask_should_not_change(benchmarks, layout, meter):
    """Both masks are the left half."""
    write_brush(benchmarks / "magicbrush", mask_img=png("red", clear=(0, 0, 40, 60)))
    change_pie(benchmarks, mask=runs(slice(0, 256)))
    held = of_benchmark(layout, benchmarks / layout, count=10, size=SIZE)
    assert held.masked
    inside = measured(held, meter, painted(held, slice(0, SIZE // 2)))
    assert inside.mean("outside") == 0 and inside.mean("change") == pytest.approx(1 / 3, abs=1e-3)
    half = measured(held, meter, painted(held, slice(SIZE // 2, 3 * SIZE // 4)))
    assert half.mean("outside") == pytest.approx(1 / 3, abs=0.02) and half.mean("change") == pytest.approx(1 / 6, abs=1e-3)


def test_the_border_of_a_pie_bench_mask_counts_as_inside_and_an_edit_of_all_has_nothing_beyond(benchmarks, meter):
    held = of_benchmark("pie_bench", change_pie(benchmarks, mask=[]), count=10, size=SIZE)
    beyond = held.beyond(slice(0, 1))[0]
    assert beyond[1:-1, 1:-1].all() and not beyond[0].any() and not beyond[:, -1].any()
    held = of_benchmark("pie_bench", change_pie(benchmarks, mask=[0, 512 * 512 + 9]), count=10, size=SIZE)
    assert measured(held, meter, painted(held, slice(0, SIZE))).mean("outside") == 0


@pytest.mark.parametrize("mask", [[0, 5, 9], [-5, 10], ["a", "b"], {"a": 1}, [[1], [2, 3]], [10**30, 1]])
def test_a_flawed_mask_of_pie_bench_is_told_by_its_key(benchmarks, mask):
    with pytest.raises(DataError, match=r"mapping_file\.json: 000: mask"):
        of_benchmark("pie_bench", change_pie(benchmarks, mask=mask), count=1, size=SIZE)


def test_masks_that_lost_their_transparency_are_none(benchmarks):
    for lost in (png("white"), png("white", clear=(0, 0, 0, 0))):
        write_brush(benchmarks / "magicbrush", mask_img=lost)
        assert not of_benchmark("magicbrush", benchmarks / "magicbrush", count=10, size=SIZE).masked
    write_brush(benchmarks / "magicbrush", mask_img=b"torn")
    with pytest.raises(DataError, match="mask of 0: not a whole picture"):
        of_benchmark("magicbrush", benchmarks / "magicbrush", count=10, size=SIZE)


def test_the_masks_of_our_own_export_hold_the_whole_edit(made, meter, tmp_path):
    export_dataset(made / "dataset", "magicbrush", tmp_path / "out")
    held = of_benchmark("magicbrush", tmp_path / "out", count=10, size=SIZE)
    assert held.masked
    target = measured(held, meter, held.targets)
    assert target.mean("outside") < target.mean("change") / 2  # the pairs are sampled, so all of a picture differs a little


def test_other_masks_are_other_edits(benchmarks):
    marks = [of_benchmark("pie_bench", change_pie(benchmarks, mask=m), count=1, size=SIZE).mark for m in ([], [0, 9000], None)]
    assert len(set(marks)) == 3


def test_magicbrushs_test_split_is_read_as_its_authors_give_it_out(archive, meter):
    held = of_benchmark("magicbrush", archive, count=10, size=SIZE)
    assert [(e.id, e.instruction, e.caption, e.edited_caption) for e in held.edits] == [
        ("17", "make it blue", "a red wall", "a blue wall"),
        ("17", "make it green", "a blue wall", "a green wall"),
    ]
    assert held.masked and held.captioned
    assert torch.equal(held.sources(slice(1, 2)), held.targets(slice(0, 1)))
    right = measured(held, meter, held.targets)
    assert right.mean("l1") == 0 and right.mean("target_similarity") == pytest.approx(1, abs=1e-4)
    assert measured(held, meter, held.sources).mean("target_similarity") < 0.999
    assert [e.split for e in magicbrush.read(archive)] == ["test", "test"]
    assert of_benchmark("magicbrush", archive.parent, count=10, size=SIZE).edits == held.edits


def test_what_was_trained_on_without_captions_is_known_when_a_benchmark_has_them(archive):
    sessions = json.loads((archive / "edit_sessions.json").read_text())
    shutil.copytree(archive / "images" / "17", archive / "images" / "18")
    (archive / "edit_sessions.json").write_text(json.dumps(sessions | {"18": sessions["17"]}))
    for known, left in (("17", ["18", "18"]), ("a red wall", ["17", "18", "18"])):
        edits = of_benchmark("magicbrush", archive, count=10, size=SIZE, seen=NONE.with_captions([known])).edits
        assert [e.id for e in edits] == left


def test_where_captions_do_not_tell_the_way_of_every_edit_targets_tell_it_of_all(archive, meter):
    told = json.loads((archive / "global_descriptions.json").read_text())
    told["17"]["17-output2.png"] = told["17"]["17-output1.png"]
    (archive / "global_descriptions.json").write_text(json.dumps(told))
    held = of_benchmark("magicbrush", archive, count=10, size=SIZE)
    assert held.by_target and held.captioned
    right = measured(held, meter, held.targets)
    assert right.mean("direction_similarity") == pytest.approx(1, abs=1e-4) and "text_similarity" in right.rows


def test_of_magicbrushs_folders_captions_may_be_missing_and_those_for_training_are_not_measured_on(archive):
    (archive / "global_descriptions.json").write_text(json.dumps({"17": {"17-output1.png": "a blue wall"}}))
    held = of_benchmark("magicbrush", archive, count=10, size=SIZE)
    assert held.by_target and not any(e.caption or e.edited_caption for e in held.edits)
    (archive / "global_descriptions.json").unlink()
    assert of_benchmark("magicbrush", archive, count=10, size=SIZE).by_target
    dev = shutil.copytree(archive, archive.with_name("dev"))
    (dev / "edit_sessions.json").write_text("{}")
    assert [e.split for e in magicbrush.read(archive.parent)] == ["test", "test"]
    train = archive.rename(archive.with_name("train"))
    with pytest.raises(DataError, match="holds no edits"):
        of_benchmark("magicbrush", archive.parent, count=10, size=SIZE)  # those of `dev`, of which there are none
    assert [e.split for e in magicbrush.read(archive.parent)] == ["train", "train"]
    shutil.rmtree(dev)
    with pytest.raises(DataError, match="is all for training"):
        of_benchmark("magicbrush", train, count=10, size=SIZE)
    with pytest.raises(DataError, match="no Parquet files"):
        list(magicbrush.read(archive.parent / "nowhere"))


def test_what_magicbrushs_folders_lack_is_told_by_name(archive):
    sessions = json.loads((archive / "edit_sessions.json").read_text())
    (archive / "images" / "17" / "17-output2.png").unlink()
    with pytest.raises(DataError, match=r"17-output2\.png: missing"):
        of_benchmark("magicbrush", archive, count=10, size=SIZE)
    for turns, told in (
        ([{"input": "x"}], "17, turn 1: a turn needs"),
        ([{**sessions["17"][0], "input": "../../../x"}], "not a regular file inside"),
    ):
        (archive.parent / "x").write_bytes(png("red"))
        (archive / "edit_sessions.json").write_text(json.dumps({"17": turns}))
        with pytest.raises(DataError, match=told):
            of_benchmark("magicbrush", archive, count=10, size=SIZE)
    for text in ("[", "[1]"):
        (archive / "edit_sessions.json").write_text(text)
        with pytest.raises(DataError, match=r"edit_sessions\.json: not"):
            of_benchmark("magicbrush", archive, count=10, size=SIZE)
