from pathlib import Path

import pytest

from flows.stage import require_sections
from ip2p.errors import ParamsError
from ip2p.params import Params, load_params

ROOT = Path(__file__).parents[1]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("pairs: {stepz: 3}", "pairs.stepz: unknown key"),
        ("pairs: {steps: many}", "pairs.steps: .*valid integer.*'many'"),
        ("pairs: {p2p: [0.9, 0.1]}", "range .* is empty"),
        ("filter: {splits: [0.5, 0.5]}", "leave nothing to train on"),
        ("train: {drop_text: 0.5, drop_image: 0.6}", "their sum must be at most 1"),
        ("train: {lr: -1}", "train.lr: .*greater than 0"),
        ("pretrain: {teacher_sizes: [128]}", "pretrain.teacher_sizes: .*pretrain.size must be one of them"),
        ("filter: {judge: {moderation: omni-moderation-latest}}", "filter.judge.moderation: "),
        ("triplets: {llm: {model: gpt-4o}}", "triplets.llm: .*price_in and price_out stand at gpt-4o-mini's; give those of gpt-4o"),
        ("filter: {judge: {model: gpt-5, price_in: 1}}", "filter.judge: .*give those of gpt-5"),
        ("register: {name: team/editor}", "register.name: "),
        ("report: {grid: 13}", "report.grid: .*less than or equal to 12"),
        ("pairs: [1, 2", "not valid YAML"),
        ("just words", "holds no sections; it needs some"),
        ("", "is empty; it needs some, such as `pairs:`"),
        ("pairs: {guidance: [5.0, 2.5]}", r"pairs: guidance: the range \[5.0, 2.5\] is empty, write the smaller number first$"),
    ],
)
def test_broken_params_name_file_and_field(tmp_path, text, message):
    path = tmp_path / "params.yaml"
    path.write_text(text)
    with pytest.raises(ParamsError, match=message) as error:
        load_params(path)
    assert str(path) in str(error.value)
    assert "\n" not in str(error.value)


def test_missing_params_say_where_to_run(tmp_path):
    with pytest.raises(ParamsError, match="no such file; run from"):
        load_params(tmp_path / "params.yaml")


def test_the_shipped_params_are_valid_and_complete():
    params = load_params(ROOT / "params.yaml")
    assert params.models.teacher == "world"


@pytest.mark.parametrize("path", [ROOT / "params.yaml", *sorted((ROOT / "params").glob("*.yaml"))], ids=lambda p: p.name)
def test_every_file_of_parameters_is_valid_and_has_all_that_dvc_follows(path):
    load_params(path)
    require_sections(path, ROOT / "dvc.yaml")


def test_a_section_that_dvc_follows_and_nobody_wrote_is_missed_at_once(tmp_path):
    (tmp_path / "params.yaml").write_text("seed: 0\n")
    (tmp_path / "dvc.yaml").write_text("stages: {report: {params: [seed, report]}}\n")
    with pytest.raises(ParamsError, match="no `report`, which dvc"):
        require_sections(tmp_path / "params.yaml", tmp_path / "dvc.yaml")


def test_defaults_are_valid():
    assert Params().train.ema == 0.9999
