"""The server follows the registry: promotion under load loses nobody a request, and a broken champion is not taken."""

import json
import shutil
import threading
import time
from contextlib import suppress
from functools import partial

import mlflow
import pytest
import torch
from safetensors.torch import load_file, save_file

from ip2p.errors import ModelError
from ip2p.release import people, registry
from ip2p.serve import champion as champion_module
from ip2p.serve.champion import Champion, LoadingError
from ip2p.store import digest
from tests.serve.conftest import png, ready, running, serving
from tests.services import until


@pytest.fixture
def home(tiny, made, editor_folder, tmp_path, monkeypatch, track_in):
    monkeypatch.chdir(tmp_path)
    params = tiny.model_copy(update={"track": track_in(tmp_path)})
    return serving(params, tmp_path, "", editor=None, fallback=None), made / "dataset", editor_folder


def register(params, dataset, editor, root, *, success=0.5):
    evaluation = root / "evaluation"
    evaluation.mkdir(exist_ok=True)
    report = {"editor": digest(editor), "held_out": "h", "headline": {"success": success, "done": success}}
    report |= {"baselines": {"source": {"success": 0.1}}}
    report |= {"rows": {"success": [success] * 20, "stayed": [1.0] * 20}, "edit_types": ["season"] * 20}
    report["id"] = time.time()  # another evaluation each time, and so another version
    (evaluation / "report.json").write_text(json.dumps(report))
    paths = {"evaluation": evaluation, "triplets": root / "triplets", "dataset": dataset, "work": root / "register"}
    return registry.run(params, editor=editor, **paths).extra["version"]


def without_numbers(editor, root):
    """A copy of an editor that no picture comes of."""
    broken = root / "broken"
    shutil.copytree(editor, broken)
    path = broken / "unet" / "diffusion_pytorch_model.safetensors"
    weights = load_file(path)
    weights["conv_in.weight"] = torch.full_like(weights["conv_in.weight"], float("nan"))
    save_file(weights, path, {"format": "pt"})
    return broken


wait_until = partial(until, seconds=60)


@pytest.mark.timeout(300)
def test_promotion_under_load_gives_no_errors_and_a_broken_champion_leaves_the_old_one(home, tmp_path):
    params, dataset, editor = home
    with running(params, tmp_path) as server:
        # nothing is registered: alive, not ready
        assert server.client.get("/healthz").status_code == 200
        assert server.client.get("/readyz").status_code == 503
        refused = server.client.post("/v1/images/edits", files={"image": png()}, data={"prompt": "x"})
        assert refused.status_code == 503 and refused.headers["retry-after"].isdecimal()

        first = register(params, dataset, editor, tmp_path)
        ready(server)
        answers, stop = [], threading.Event()

        def ask():
            while not stop.is_set():
                data = {"prompt": "make it winter", "num_inference_steps": "3"}
                told = server.client.post("/v1/images/edits", files={"image": png()}, data=data)
                answers.append((told.status_code, told.headers.get("x-model-version")))

        threads = [threading.Thread(target=ask) for _ in range(2)]
        for thread in threads:
            thread.start()
        wait_until(lambda: len(answers) > 2)
        second = register(params, dataset, editor, tmp_path)
        wait_until(lambda: (200, second) in answers)

        # a champion whose weights are no numbers
        third = register(params, dataset, without_numbers(editor, tmp_path), tmp_path)
        before = len(answers)
        wait_until(lambda: server.desk.champion._is_refused(third))
        wait_until(lambda: len(answers) > before + 3)
        stop.set()
        for thread in threads:
            thread.join()
        assert {code for code, _ in answers} == {200}
        assert {v for _, v in answers} == {first, second}
        assert answers[-1][1] == second

        # an older version is still there to compare with; what is not registered is not
        told = server.edit(version=first)
        assert told["version"] == first
        listed = server.client.get("/api/v1/versions").json()["versions"]
        assert [v["version"] for v in listed] == [third, second, first] and "champion" in listed[0]["aliases"]
        missing = server.client.post("/api/v1/edits", files={"image": png()}, data={"instruction": "x", "version": "99"})
        assert missing.status_code == 404


def test_what_could_not_be_loaded_is_tried_again_later(home, tmp_path, monkeypatch):
    params, _, editor = home
    params = params.model_copy(update={"serve": params.serve.model_copy(update={"editor": str(tmp_path / "late")})})
    champion = Champion(params, work=tmp_path / "versions")
    champion.look()
    shutil.copytree(editor, tmp_path / "late")
    champion.look()  # it was tried just now
    assert champion.served is None
    now = time.monotonic()
    monkeypatch.setattr("ip2p.serve.champion.time.monotonic", lambda: now + 61)
    champion.look()
    assert champion.served is not None and champion._refused is None


def test_a_refused_version_is_fetched_anew_when_it_is_tried_again(home, tmp_path, monkeypatch):
    params, dataset, editor = home
    number = register(params, dataset, editor, tmp_path)
    fetched = registry.fetch_version(params, number, tmp_path / "versions")
    (fetched.folder / "unet" / "config.json").write_text("{")  # the copy here was damaged
    champion = Champion(params, work=tmp_path / "versions")
    champion.look()
    assert champion.served is None
    now = time.monotonic()
    monkeypatch.setattr("ip2p.serve.champion.time.monotonic", lambda: now + 61)
    champion.look()
    assert champion.served.version == number


def test_a_champion_that_is_one_no_more_goes_on_serving(home, tmp_path):
    params, dataset, editor = home
    params = params.model_copy(update={"serve": params.serve.model_copy(update={"fallback": str(editor)})})
    number = register(params, dataset, editor, tmp_path)
    champion = Champion(params, work=tmp_path / "versions")
    champion.look()
    mlflow.MlflowClient().delete_registered_model_alias("ip2p-editor", "champion")
    champion.look()
    assert champion.served.version == number  # not the fallback, which is for before the first
    assert json.loads((tmp_path / "versions" / "last.json").read_text())["version"] == number


def test_versions_that_are_only_compared_make_room_for_a_champion(home, tmp_path, monkeypatch):
    params, dataset, editor = home
    first, second = (register(params, dataset, editor, tmp_path) for _ in range(2))
    champion = Champion(params, work=tmp_path / "versions")
    champion.look()
    assert champion.served.version == second and champion.version(first).version == first
    third = register(params, dataset, editor, tmp_path)
    opened = champion_module.open_editor

    def full(*arguments):
        if champion._others:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return opened(*arguments)

    monkeypatch.setattr(champion_module, "open_editor", full)
    champion.look()
    assert champion.served.version == third and not champion._others


def test_what_fails_for_now_is_tried_less_and_less_often(home, tmp_path, monkeypatch):
    params, dataset, editor = home
    register(params, dataset, editor, tmp_path)
    champion, tried, now = Champion(params, work=tmp_path / "versions"), [], [0.0]

    def fails(*arguments):
        tried.append(now[0])
        raise OSError("storage out of reach")

    monkeypatch.setattr(champion_module, "fetch_version", fails)
    monkeypatch.setattr(champion_module.time, "monotonic", lambda: now[0])
    for second in range(0, 400):
        now[0] = float(second)
        with suppress(OSError):
            champion.look()
    assert 8 < len(tried) < 20 and tried[-1] - tried[-2] == 60


def test_until_there_is_a_champion_the_fallback_serves(home, tmp_path):
    params, dataset, editor = home
    params = params.model_copy(update={"serve": params.serve.model_copy(update={"fallback": str(editor)})})
    with running(params, tmp_path) as server:
        ready(server)
        assert server.client.get("/readyz").json() == {"version": "embedded"}
        assert server.edit()["version"] == "embedded"
        assert [v["version"] for v in server.client.get("/api/v1/versions").json()["versions"]] == ["embedded"]
        first = register(params, dataset, editor, tmp_path)
        wait_until(lambda: server.client.get("/readyz").json()["version"] == first)
        assert [v["version"] for v in server.client.get("/api/v1/versions").json()["versions"]] == [first, "embedded"]
        assert server.edit(version="embedded")["version"] == "embedded"  # to compare with, and for pages opened before


def test_a_version_that_holds_a_pickle_is_never_loaded(home, tmp_path, monkeypatch):
    params, dataset, editor = home
    poisoned = tmp_path / "poisoned"
    shutil.copytree(editor, poisoned)
    (poisoned / "unet" / "diffusion_pytorch_model.bin").write_bytes(b"cos\nsystem\n(S'touch pwned'\ntR.")
    with monkeypatch.context() as elsewhere:
        elsewhere.setattr(registry, "_require_safe", lambda *a: None)  # by a program that looks at nothing
        number = register(params, dataset, poisoned, tmp_path)
    with pytest.raises(ModelError, match=r"holds diffusion_pytorch_model\.bin; only safetensors"):
        registry.fetch_version(params, number, tmp_path / "versions")
    assert not (tmp_path / "pwned").exists()


def test_the_defaults_are_those_that_the_version_was_evaluated_with(home, tmp_path):
    params, dataset, editor = home
    number = register(params, dataset, editor, tmp_path)
    fetched = registry.fetch_version(params, number, tmp_path / "versions")
    assert fetched.defaults["steps"] == params.evaluate.steps
    assert fetched.defaults["text_guidance"] == params.evaluate.text_guidance
    assert mlflow.MlflowClient().get_model_version_by_alias("ip2p-editor", "champion").version == int(number)


def test_versions_held_by_jobs_bound_what_is_loaded(home, tmp_path):
    params, dataset, editor = home
    numbers = [register(params, dataset, editor, tmp_path) for _ in range(4)]
    champion = Champion(params, work=tmp_path / "versions")
    champion.look()
    held = [champion.version(n) for n in numbers[:2]]
    with pytest.raises(LoadingError, match=r"versions 1, 2 are under way"):
        champion.version(numbers[2])
    assert champion.version(numbers[0]) is held[0]
    del held[1]
    assert champion.version(numbers[2]).version == numbers[2]
    assert sorted(champion._alive) == [numbers[0], numbers[2]]
    people.promote(params, numbers[2], "it is loaded")
    champion.look()  # becomes champion, and is no longer one of the others
    assert champion.served.version == numbers[2] and list(champion._alive) == [numbers[0]]


def test_without_its_registry_a_server_starts_with_what_it_served_last(home, tmp_path, monkeypatch):
    params, dataset, editor = home
    number = register(params, dataset, editor, tmp_path)
    Champion(params, work=tmp_path / "versions").look()
    monkeypatch.setattr("ip2p.serve.champion.champion_and_run", lambda params: 1 / 0)
    again = Champion(params, work=tmp_path / "versions")
    with pytest.raises(ZeroDivisionError):
        again.look()
    assert again.served.version == number
    assert again.served.defaults.steps == params.evaluate.steps
    # what never served falls back
    fallen = params.model_copy(update={"serve": params.serve.model_copy(update={"fallback": str(editor)})})
    fresh = Champion(fallen, work=tmp_path / "other")
    with pytest.raises(ZeroDivisionError):
        fresh.look()
    assert fresh.served.version == "embedded"


def test_a_server_that_starts_on_a_broken_champion_serves_what_it_served_last(home, tmp_path):
    params, dataset, editor = home
    good = register(params, dataset, editor, tmp_path)
    Champion(params, work=tmp_path / "versions").look()
    broken = register(params, dataset, without_numbers(editor, tmp_path), tmp_path)
    again = Champion(params, work=tmp_path / "versions")
    again.look()
    assert again.served.version == good and again._is_refused(broken)
    # what served nothing before falls back
    fallen = params.model_copy(update={"serve": params.serve.model_copy(update={"fallback": str(editor)})})
    fresh = Champion(fallen, work=tmp_path / "other")
    fresh.look()
    assert fresh.served.version == "embedded"


def test_an_editor_that_was_asked_for_and_is_broken_is_not_replaced_by_another(home, tmp_path):
    params, _, editor = home
    broken = without_numbers(editor, tmp_path)
    section = params.serve.model_copy(update={"editor": str(broken), "fallback": str(editor)})
    champion = Champion(params.model_copy(update={"serve": section}), work=tmp_path / "versions")
    champion.look()
    assert champion.served is None


def test_versions_that_nobody_needs_leave_the_disk(home, tmp_path):
    params, dataset, editor = home
    champion = Champion(params, work=tmp_path / "versions")
    numbers = []
    for _ in range(3):
        numbers.append(register(params, dataset, editor, tmp_path))
        champion.look()
    kept = {p.name.split("-")[2] for p in (tmp_path / "versions").glob("ip2p-editor-*")}
    assert kept == set(numbers[1:])  # the champion, and the one before it for a rollback


def test_what_keeps_a_version_away_for_now_is_no_missing_version(home, tmp_path, monkeypatch):
    params, dataset, editor = home
    number = register(params, dataset, editor, tmp_path)
    other = register(params, dataset, editor, tmp_path)
    champion = Champion(params, work=tmp_path / "versions")
    champion.look()
    wanted = number if champion.served.version == other else other
    monkeypatch.setattr("ip2p.serve.champion.fetch_version", lambda *a: (_ for _ in ()).throw(ConnectionError("S3 is away")))
    with pytest.raises(LoadingError, match=f"version {wanted}: cannot be loaded now"):
        champion.version(wanted)
    with pytest.raises(ModelError, match="version 99: not registered"):
        champion.version("99")


def test_a_champion_of_another_registry_is_another_though_its_number_is_the_same(home, tmp_path, monkeypatch):
    params, dataset, editor = home
    number = register(params, dataset, editor, tmp_path)
    champion = Champion(params, work=tmp_path / "versions")
    champion.look()
    first = champion.served
    champion.look()
    assert champion.served is first
    again = Champion(params, work=tmp_path / "versions")  # starts on what it served last
    again._serve_last()
    held = again.served
    again.look()
    assert again.served is held
    monkeypatch.setattr("ip2p.serve.champion.champion_and_run", lambda params: (number, "a run of another registry"))
    champion.look()
    assert champion.served is not first and champion.served.version == number
    now = champion.served
    champion.look()
    assert champion.served is now


def test_what_a_process_that_was_ended_left_of_a_download_goes(home, tmp_path):
    params, _, _ = home
    left = tmp_path / "versions" / ".3-abc"
    left.mkdir(parents=True)
    champion = Champion(params, work=tmp_path / "versions")
    champion.start()
    champion.stop()
    assert not left.exists()
