import os
import re
import stat
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
from PIL import Image

from ip2p.cli import build_parser, main
from ip2p.pictures import from_pillow, to_pillow
from ip2p.records import StageReport
from ip2p.world.truth import truth_of

ROOT = Path(__file__).parents[1]


def test_help_teaches_without_loading_anything_heavy():
    heavy = ("torch", "numpy", "pyarrow", "yaml", "pydantic")
    code = f"import sys, ip2p.cli; ip2p.cli.build_parser().format_help(); print([m for m in {heavy} if m in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
    assert "make it winter" in build_parser().format_help()


def run(arguments, capsys):
    code = main([str(a) for a in arguments])
    return code, capsys.readouterr()


@pytest.mark.parametrize(
    ("params", "message"),
    [("pairs: {stepz: 3}", "pairs.stepz: unknown key"), ("pairs: [", "not valid YAML")],
)
def test_broken_params_are_one_line_and_exit_code_2(tmp_path, capsys, params, message):
    path = tmp_path / "params.yaml"
    path.write_text(params)
    code, output = run(["--params", path, "pairs"], capsys)
    assert code == 2
    assert message in output.err
    assert output.err.count("\n") == 1


def test_a_truncated_picture_is_named(tmp_path, capsys):
    path = tmp_path / "picture.png"
    Image.effect_noise((64, 64), 50).save(path)
    path.write_bytes(path.read_bytes()[:300])
    code, output = run(["--params", ROOT / "params.yaml", "edit", path, "make it winter", "-o", tmp_path / "out.png"], capsys)
    assert code == 2
    assert re.search(r"picture\.png: not a whole picture.*give an intact", output.err)
    assert not (tmp_path / "out.png").exists()


def test_before_any_training_the_embedded_editor_edits_and_says_so(tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    truth = truth_of(
        "a white tree at the right in front of mountains in summer at sunset under a clear sky", "make it winter", seed=3, size=96
    )
    to_pillow(truth.source_CHW).save("picture.png")
    code, output = run(["--params", ROOT / "params.yaml", "edit", "picture.png", "make it winter", "-o", "out.png"], capsys)
    assert code == 0 and "the embedded editor edits" in output.err
    edited = from_pillow(Image.open("out.png"))
    assert (edited - truth.target_CHW).abs().mean() < (truth.source_CHW - truth.target_CHW).abs().mean()

    # with a mask, here painted on a transparent layer, the rest stays bit for bit, in a file that can hold it
    mask = Image.new("RGBA", (96, 96), (255, 255, 255, 0))
    mask.save("nowhere.png")
    mask.paste((255, 255, 255, 255), (0, 48, 96, 96))
    mask.save("below.png")
    masked = ["--params", ROOT / "params.yaml", "edit", "picture.png", "make it winter", "--mask"]
    code, output = run([*masked, "nowhere.png", "-o", "same.png"], capsys)
    assert code == 2 and "--mask: nothing in it is white" in output.err
    code, output = run([*masked, "below.png", "-o", "same.jpg"], capsys)
    assert code == 2 and "JPEG changes every pixel" in output.err
    code, _ = run([*masked, "below.png", "-o", "below.webp"], capsys)
    above, below = (lambda image, box=box: image.convert("RGB").crop(box).tobytes() for box in ((0, 0, 96, 48), (0, 48, 96, 96)))
    before, after = Image.open("picture.png"), Image.open("below.webp")
    assert code == 0 and above(after) == above(before) and below(after) != below(before)
    Image.new("RGB", (16384, 600)).save("wide.png")
    code, output = run(["--params", ROOT / "params.yaml", "edit", "wide.png", "make it winter", "-o", "wide.webp"], capsys)
    assert code == 2 and "WebP holds 16,383 pixels a side" in output.err

    # it exports as a whole editor for other programs
    code, _ = run(["--params", ROOT / "params.yaml", "model", "export", "world", "--to", "diffusers", "-o", "whole"], capsys)
    assert code == 0 and Path("whole/vae").is_dir() and "instruct-pix2pix" in Path("whole/README.md").read_text()
    code, _ = run(["--params", ROOT / "params.yaml", "edit", "picture.png", "make it winter", "-o", "same.png", "--model", "whole"], capsys)
    assert code == 0 and Path("same.png").read_bytes() == Path("out.png").read_bytes()


def test_a_missing_editor_is_named(tmp_path, capsys):
    path = tmp_path / "picture.png"
    Image.new("RGB", (64, 64)).save(path)
    options = ["--params", ROOT / "params.yaml", "edit", path, "make it winter", "-o", tmp_path / "out.png", "--model", tmp_path / "none"]
    code, output = run(options, capsys)
    assert code == 2
    assert "give an existing folder" in output.err


def test_the_contact_sheet_is_written(tmp_path, capsys):
    code, _ = run(["world", "show", "--size", 32, "-o", tmp_path / "sheet.png"], capsys)
    assert code == 0
    assert Image.open(tmp_path / "sheet.png").width == 8 * 36 - 4


def test_doctor_reports_versions_and_broken_params(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr("ip2p.doctor._FREE_GB", 0)
    code, output = run(["--params", ROOT / "params.yaml", "doctor"], capsys)
    assert code == 0, output.out
    assert "embedded models" in output.out
    code, output = run(["--params", tmp_path / "none.yaml", "doctor"], capsys)
    assert code == 2
    assert "FAIL" in output.out


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["train", "--gpu", "24"], "--gpu: belongs to `ip2p train plan`"),
        (["train", "plan", "--gpu", "-3"], "--gpu: -3 GB is no memory"),
        (["evaluate", "--steps", "5"], "--steps: belongs to `ip2p evaluate ablate`"),
        (["filter", "--labels", "x.jsonl"], "--labels: belongs to `ip2p filter calibrate`"),
        (["triplets", "plan", "--base", "x"], "--base: belongs to `ip2p triplets finetune`"),
        (["pairs", "-o", "x"], "--output: belongs to `ip2p pairs regenerate`"),
    ],
)
def test_what_would_be_ignored_or_makes_no_sense_is_refused(capsys, arguments, message):
    assert main(["--params", str(ROOT / "params.yaml"), *arguments]) == 2
    assert message in capsys.readouterr().err


@pytest.mark.parametrize(
    "arguments", [["release", "rollback", "2"], ["world", "show", "a fox"], ["model", "check", "--to", "single"], ["release", "promote"]]
)
def test_what_an_action_does_not_know_or_lacks_is_a_usage_error(capsys, arguments):
    with pytest.raises(SystemExit, match="2"):
        main(arguments)
    assert "unrecognized arguments" in (told := capsys.readouterr().err) or "arguments are required" in told


def test_a_scene_is_drawn_from_its_caption(tmp_path, capsys):
    path = tmp_path / "picture.png"
    assert main(["world", "draw", "-o", str(path), "a yellow car in the centre in a city in autumn"]) == 0
    assert Image.open(path).size == (128, 128)
    assert main(["world", "draw", "a photo of my dog", "-o", str(path)]) == 2
    assert "no setting is named" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--text-guidance", "nan"], "--text-guidance: nan is out of range"),
        (["--image-guidance", "-1"], "--image-guidance: -1 is out of range"),
        (["--steps", "5000"], "--steps: 5000 is out of range"),
        (["-o", "folder.png"], "folder.png cannot be written"),
    ],
)
def test_an_edit_that_cannot_be_made_is_refused_before_it_begins(tmp_path, monkeypatch, capsys, arguments, message):
    monkeypatch.chdir(tmp_path)
    Image.new("RGB", (8, 8)).save("in.png")
    Path("folder.png").mkdir()
    assert main(["--params", str(ROOT / "params.yaml"), "edit", "in.png", "make it winter", "-o", "out.png", *arguments]) == 2
    assert message in capsys.readouterr().err


def test_a_disk_that_is_full_costs_no_picture(tmp_path):
    picture = tmp_path / "p.png"
    Image.effect_noise((64, 64), 90).save(picture)
    before = picture.read_bytes()
    code = "import resource, sys; resource.setrlimit(resource.RLIMIT_FSIZE, (1024, 1024)); from ip2p.cli import main; sys.exit(main())"
    words = ["world", "draw", "a red boat on the left at the beach in summer", "-o", str(picture)]
    done = subprocess.run([sys.executable, "-c", code, *words], capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 2 and "p.png: cannot be written (File too large); make room" in done.stderr and "Traceback" not in done.stderr
    assert picture.read_bytes() == before


def test_parameters_are_named_before_the_verb_or_after(tmp_path, capsys):
    path = tmp_path / "other.yaml"
    path.write_text("")
    for words in (["--params", str(path), "report"], ["report", "--params", str(path)], ["release", "status", "--params", str(path)]):
        assert main(words) == 2
        assert "other.yaml: is empty" in capsys.readouterr().err


@pytest.mark.parametrize(("name", "told"), [("who/ever", "it is not on this machine, and the Hub"), ("sub/nope", "no folder sub/nope")])
def test_a_model_that_is_nowhere_is_told_so(tmp_path, monkeypatch, capsys, name, told):
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.chdir(tmp_path)
    (tmp_path / "sub").mkdir()
    Image.new("RGB", (8, 8)).save("in.png")
    arguments = ["--params", str(ROOT / "params.yaml"), "edit", "in.png", "make it winter", "--model", name, "-o", "out.png"]
    assert main(arguments) == 2
    assert told in capsys.readouterr().err


def test_a_stage_tells_what_became_of_it():
    register = StageReport("register", 1, 0, 1.0, {"success +.01, wanted +.02": 1}, extra={"version": "2", "model": "ip2p-editor"})
    assert register.lines() == ["register: version 2 of ip2p-editor is not promoted:", "  success +.01, wanted +.02"]
    assert replace(register, kept=1, dropped_by_reason={}).lines() == ["register: version 2 of ip2p-editor is champion"]
    assert StageReport("train", 64, 64, 2.0, extra={"loss": 0.25}).lines() == ["train: saw 64 samples in 2.0 s, loss 0.2500"]


def test_what_the_system_refuses_is_told_in_a_line(tmp_path, monkeypatch, capsys):
    assert main(["--params", str(tmp_path), "doctor"]) == 2
    assert main(["--params", str(tmp_path), "train"]) == 2
    assert "cannot be read (Is a directory)" in capsys.readouterr().err
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://127.0.0.1:9")
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    assert main(["--params", str(ROOT / "params.yaml"), "release", "status"]) == 2
    assert "MLflow (track.uri, MLFLOW_TRACKING_URI) cannot be used" in capsys.readouterr().err


def test_an_exported_editor_is_for_others_to_read(tmp_path, capsys):
    old = os.umask(0o022)
    try:
        assert main(["--params", str(ROOT / "params.yaml"), "model", "export", "world", "-o", str(tmp_path / "new" / "e.safetensors")]) == 0
    finally:
        os.umask(old)
    assert stat.S_IMODE((tmp_path / "new" / "e.safetensors").stat().st_mode) == 0o644
    assert main(["--params", str(ROOT / "params.yaml"), "model", "export", "world", "--to", "embedded", "-o", "x"]) == 2
    assert "leave it out" in capsys.readouterr().err
