"""The house keeps its names: module = DVC stage = flow = verb = params section = test."""

import argparse
import ast
import importlib
import re
import shutil
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest
import yaml

from flows import folders
from ip2p.cli import STAGE_HELP, build_parser
from ip2p.dataset import pairs
from ip2p.dataset.exchange import move
from ip2p.model import data, evaluate, preferences, train
from ip2p.params import Params
from ip2p.stages import STAGES

ROOT = Path(__file__).parents[1]
GRAPH = yaml.safe_load((ROOT / "dvc.yaml").read_text())["stages"]


def test_one_name_for_one_thing():
    sections = {(field.alias or name) for name, field in Params.model_fields.items()}
    assert tuple(GRAPH) == ("folders", *STAGES) and tuple(STAGE_HELP) == STAGES
    assert set(STAGES) <= sections
    for stage in STAGES:
        assert (ROOT / "flows" / f"{stage}.py").exists()
        assert GRAPH[stage]["cmd"] == f"python -m flows.{stage}"
        assert GRAPH[stage]["metrics"] == [{f"reports/{stage}.json": {"cache": False}}]


def test_the_graph_is_written_in_the_order_it_runs_and_names_real_files():
    made: set[str] = set()
    for stage in GRAPH.values():
        for path in stage.get("deps", []):
            assert path in made or (ROOT / path).exists(), path
        for out in [*stage.get("outs", []), *stage.get("metrics", [])]:
            made |= {out} if isinstance(out, str) else set(out)


@pytest.mark.parametrize("stage", STAGES)
def test_every_stage_has_tests_and_a_flow_of_its_name(stage):
    assert list((ROOT / "tests").rglob(f"test_{stage}.py")) or stage in ("register", "report")
    assert getattr(importlib.import_module(f"flows.{stage}"), stage).name == stage


def test_what_parameters_name_is_followed_where_it_is_read():
    written = {name for out in GRAPH["folders"]["outs"] for name in out}
    followed = {dep: stage for stage in STAGES for dep in GRAPH[stage].get("deps", []) if dep.startswith(str(folders.OUT))}
    assert {f"{folders.OUT}/{stage}.json": stage for stage in folders.NAMED} == followed and written == set(followed)
    for stage, names in folders.NAMED.items():
        assert {name.split(".")[0] for name in names} <= set(GRAPH[stage]["params"])


def test_the_embedded_weights_fit_and_are_safetensors():
    files = [p for p in (ROOT / "ip2p" / "world" / "weights").rglob("*") if p.is_file()]
    assert sum(p.stat().st_size for p in files) <= 64e6
    assert {p.suffix for p in files} <= {".safetensors", ".json", ".txt", ".md"}


def test_every_verb_is_in_the_readme():
    readme = (ROOT / "README.md").read_text()
    (verbs,) = (a.choices for a in build_parser()._actions if isinstance(a, argparse._SubParsersAction))
    assert len(verbs) > 15
    for verb, parser in verbs.items():
        told = "\n".join(line for line in readme.splitlines() if f"`ip2p {verb}" in line)
        assert told, verb
        for action in next((a.choices for a in parser._actions if a.dest == "what"), None) or ():
            assert re.search(rf"`(ip2p {verb} )?{action}`", told), f"{verb} {action}"


def test_every_module_has_a_layer():
    (layers,) = (
        c["layers"]
        for c in tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["importlinter"]["contracts"]
        if c["type"] == "layers"
    )
    placed = {name.strip() for layer in layers for name in layer.split("|")}
    modules = {f"ip2p.{p.stem}" for p in (ROOT / "ip2p").iterdir() if p.suffix == ".py" or (p / "__init__.py").exists()}
    assert modules - {"ip2p.__init__"} == placed - {"flows"}


# What no stage's result depends on by itself: reading parameters, writing files, keeping sets, telling errors.
INFRASTRUCTURE = {"startup", "errors", "params", "store", "marks", "remote", "track", "torchvision_cpu"}
MODULES = {
    **dict.fromkeys(("triplets", "pairs", "filter", "validate"), "dataset"),
    "train": "model",
    "evaluate": "model",
    "report": "model",
}


def imports(path: Path) -> set[Path]:
    """Modules of ip2p that a source file imports."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("ip2p."):
            module = ROOT / node.module.replace(".", "/")
            found.add(module / "__init__.py" if module.is_dir() else module.with_suffix(".py"))
    return found


def closure_of(first: Path) -> set[Path]:
    """A module and all of ip2p that it imports, and what they import."""
    closure, open_ = set(), {first}
    while open_:
        path = open_.pop()
        closure.add(path)
        open_ |= imports(path) - closure
    return closure


# Whose code a kept result is fingerprinted with, and what they import that is not in the list: it decides nothing, or is fingerprinted by
# what it gave.
PLUMBING = {"dataset/read.py", "graphs.py", "startup.py", "tensors.py", "torchvision_cpu.py"}
FINGERPRINTED = {
    "dataset/pairs.py": (pairs.CODE, {"parallel.py"}),
    "dataset/exchange/move.py": (
        move.CODE,
        {
            "diffusion.py",
            "sampler.py",
            *(f"dataset/{n}" for n in ("exchange", "filter.py", "filters", "judge.py", "llm", "p2p", "survival.py")),
        },
    ),
    "model/data.py": (data.CODE, {"parallel.py"}),
    "model/preferences.py": (preferences.CODE, {"model/data.py", "parallel.py"}),
    "model/train.py": (
        train.CODE,
        {"checkpoint.py", "records.py", *(f"model/{n}.py" for n in ("edit", "folder", "guidance", "plan", "seen"))},
    ),
    "model/evaluate.py": (
        evaluate.CODE,
        {"records.py", "sheets.py", "world", "dataset/exchange", "dataset/judge.py", "dataset/llm", "dataset/world_writer.py"}
        | {f"model/{n}.py" for n in ("benchmarks", "bootstrap", "examples", "plots", "seen", "unet")},
    ),
}


@pytest.mark.parametrize("name", FINGERPRINTED)
def test_a_result_is_made_anew_when_any_code_that_decides_it_changes(name):
    code, apart = FINGERPRINTED[name]
    left = sorted(
        str(path)
        for path in (p.relative_to(ROOT / "ip2p") for p in closure_of(ROOT / "ip2p" / name))
        if not INFRASTRUCTURE & set(path.with_suffix("").parts)
        and str(path) not in code
        and not {str(p) for p in (path, *path.parents)} & (apart | PLUMBING)
    )
    assert left == [] and all((ROOT / "ip2p" / n).is_file() for n in code)


@pytest.mark.parametrize("stage", STAGES)
def test_dvc_watches_every_source_that_a_stage_imports(stage):
    first = ROOT / "ip2p" / (f"{MODULES[stage]}/{stage}.py" if stage in MODULES else "release/registry.py")
    wanted = [p.relative_to(ROOT) for p in closure_of(first) if not INFRASTRUCTURE & set(p.relative_to(ROOT).with_suffix("").parts)]
    watched = {Path(d) for d in GRAPH[stage]["deps"]}
    assert GRAPH[stage].get("always_changed") or [str(p) for p in wanted if not watched & {p, *p.parents}] == []


def test_dvc_writes_its_graph_as_it_stands(tmp_path):
    """So that `dvc freeze` changes one line of it."""
    for name in ("dvc.yaml", "params.yaml"):
        shutil.copyfile(ROOT / name, tmp_path / name)
    for arguments in (("init", "-q", "--no-scm"), ("freeze", "pairs"), ("unfreeze", "pairs")):
        subprocess.run([sys.executable, "-m", "dvc", *arguments], cwd=tmp_path, check=True, capture_output=True)
    assert (tmp_path / "dvc.yaml").read_text() == (ROOT / "dvc.yaml").read_text()
