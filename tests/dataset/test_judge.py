import base64
import json
from dataclasses import asdict

import pyarrow as pa
import pytest
import torch

from ip2p.dataset import filter
from ip2p.dataset.judge import Judge, Judgement, Question, read_judgement, score, summary
from ip2p.dataset.llm.client import BudgetError, EndpointError
from ip2p.dataset.llm.journal import Journal, Paid
from ip2p.params import FilterParams, JudgeParams
from ip2p.pictures import from_bytes, to_png
from ip2p.records import JUDGEMENTS
from ip2p.store import digest, read_shards, shards
from tests.dataset.llm.endpoint import endpoint


def look(asked):
    """The change between the two pictures that were sent, 0 to 1."""
    before, after = (from_bytes(base64.b64decode(x["image_url"]["url"].split(",")[1]), where="sent") for x in asked[1:])
    return (before - after).abs().mean().item()


def strict(asked):
    """A judge that wants to see a change, and refuses to look at the darkest pictures."""
    change = look(asked)
    if change < 0.02:
        return {"role": "assistant", "content": None, "refusal": "I would rather not"}
    marks = {"followed": 9, "kept": 8, "quality": 9} if change > 0.06 else {"followed": 1, "kept": 8, "quality": 9}
    return json.dumps({"why": "I see", **marks})


def judged(tiny, server, **judge):
    section = {"base_url": server.url, "model": "eye-1", "backoff": 0.01, "retries": 12, "timeout": 1.5 if server.faults else 30.0, **judge}
    thresholds = {"caption": -1, "image": -1, "direction": -1, "keep": 1, "splits": [0.2, 0.1], "judge": section}
    return tiny.model_copy(update={"filter": FilterParams.model_validate(thresholds)})


def run(params, made, folder):
    return filter.run(params, pairs=made / "pairs", out=folder / "dataset", work=folder / "work")


def test_no_more_pictures_are_held_at_once_than_fit(tmp_path, monkeypatch):
    picture = to_png(torch.rand(3, 64, 64))
    monkeypatch.setattr("ip2p.dataset.judge._AT_ONCE", 5 * len(picture))
    held = []

    def questions():
        for n in range(5):
            held.append(len(server.paid))
            yield Question(f"p{n}", f"make it {n}", picture, picture)

    marks = json.dumps({"why": "", "followed": 9, "kept": 9, "quality": 9})
    with endpoint(reply=lambda asked: marks) as server, Judge(JudgeParams(base_url=server.url, model="eye"), tmp_path / "j.jsonl") as judge:
        assert judge.ask(questions()) == [0.9] * 5
    assert held == [0, 0, 0, 2, 2]  # two at a time; the third is read before the first two are asked about


def test_a_judge_without_a_key_is_told_apart_from_the_writer(tiny, made, tmp_path, monkeypatch):
    monkeypatch.delenv("OPENAI_API_KEY", raising=False)
    params = tiny.model_copy(update={"filter": FilterParams.model_validate({"caption": -1, "image": -1, "direction": -1, "judge": {}})})
    with pytest.raises(EndpointError, match=r"^filter.judge.key_env: OPENAI_API_KEY is not set"):
        run(params, made, tmp_path)


def test_the_judge_sees_what_the_filters_keep_and_the_next_best_when_it_falls(tiny, made, tmp_path):
    with endpoint(reply=strict, faults=0.2) as server:
        report = run(judged(tiny, server), made, tmp_path)
        asked = len(server.paid)
        run(judged(tiny, server), made, tmp_path)
        with Journal(tmp_path / "work" / "judge.jsonl") as kept:
            assert len(server.paid) == asked and server.paid_again <= server.stalled(kept.lost)
    rows = read_shards(tmp_path / "dataset" / "judged").to_pylist()
    assert len(rows) == asked > 11  # each triplet's best, and for those that fell the next
    verdicts = {v["pair_id"]: v["reason"] for v in read_shards(tmp_path / "dataset" / "verdicts").to_pylist()}
    for row in rows:
        change = next(
            (from_bytes(r["original_image"]["bytes"], where="") - from_bytes(r["edited_image"]["bytes"], where="")).abs().mean()
            for r in read_shards(made / "pairs").to_pylist()
            if r["pair_id"] == row["pair_id"]
        )
        expected = "the judge gave no mark" if change < 0.02 else "kept" if change > 0.06 else "the judge says no"
        assert verdicts[row["pair_id"]] == expected, change
        assert (row["outcome"] == "refused") == (change < 0.02) and row["model"] == "toy-1"
        if row["outcome"] == "marked":
            assert json.loads(row["reply"])["why"] == "I see" and row["score"] == pytest.approx(score(row["followed"], row["kept"], 9))
    assert report.extra["judge refused"] == sum(r["outcome"] == "refused" for r in rows)
    assert str(report.extra["judge mean"]).count(".") == 3
    assert report.seen == report.kept + sum(report.dropped_by_reason.values())


def test_half_characters_in_a_reply_and_equal_questions_do_no_harm(tmp_path):
    marks = json.dumps({"why": "half an emoji: \ud83d", "followed": 9, "kept": 4, "quality": 9}, ensure_ascii=False)
    picture = to_png(torch.rand(3, 16, 16))
    with endpoint(reply=lambda asked: marks) as server:
        with Judge(JudgeParams(base_url=server.url, model="eye-1"), tmp_path / "judge.jsonl") as judge:
            scores = judge.ask([Question(str(n), "make it winter", picture, picture) for n in range(3)])
        assert scores == [0.6] * 3 and server.paid.total() == 1
    pa.Table.from_pylist([asdict(j) for j in judge.judgements], schema=JUDGEMENTS)  # as `filter` keeps them


def test_repeats_are_asked_each_and_a_budget_stops_without_losing_what_was_paid(tiny, made, tmp_path):
    with endpoint(reply=lambda asked: json.dumps({"why": "", "followed": 10, "kept": 10, "quality": 10})) as server:
        report = run(judged(tiny, server, repeats=3), made, tmp_path / "three")
        assert len(server.paid) == 33 and report.extra["judged"] == 11 and report.extra["judge spread of repeats"] == 0
        with pytest.raises(BudgetError):
            run(judged(tiny, server, budget=0.02), made, tmp_path / "poor")
        assert not (tmp_path / "poor" / "dataset").exists() and (tmp_path / "poor" / "work" / "judge.jsonl").stat().st_size > 0
        run(judged(tiny, server), made, tmp_path / "poor")
        batched = run(judged(tiny, server, batch=True, poll=0.01), made, tmp_path / "batched")
        assert batched.extra["judged"] == 11 and len(shards(made / "pairs")) > len(server.batches) == 1
    assert digest(tmp_path / "batched" / "dataset") == digest(tmp_path / "poor" / "dataset")


@pytest.mark.parametrize(
    ("text", "outcome"),
    [
        ('{"why": "", "followed": 7, "kept": 9, "quality": 10}', "marked"),
        ('I think: {"followed": 7, "kept": 9, "quality": 10}.', "marked"),
        ('{"followed": 11, "kept": 9, "quality": 10}', "not an answer"),
        ('{"followed": true, "kept": 9, "quality": 10}', "not an answer"),
        ('{"followed": "7", "kept": 9, "quality": 10}', "not an answer"),
        ('{"kept": 9, "quality": 10}', "not an answer"),
        ("7 of 10", "not an answer"),
    ],
)
def test_marks_are_integers_of_0_to_10_or_no_answer(text, outcome):
    found = read_judgement("p", 0, Paid("id", text, "stop", "m", 1, 1, 0.0))
    assert found.outcome == outcome and found.reply == text
    assert (found.score is None) == (outcome != "marked")
    if outcome == "marked":
        assert found.score == pytest.approx((7 * 10) ** 0.5 / 10)


def test_what_gave_no_mark_is_counted_apart_and_never_a_zero():
    marked = [Judgement(f"p{i}", n, 8, 8, 8, 0.8 + 0.1 * n, "marked", "m", "") for i in range(5) for n in range(2)]
    told = summary([*marked, Judgement("p9", 0, None, None, None, None, "refused", "m", "")])
    assert told["judge refused"] == 1 and told["judged"] == 5
    assert str(told["judge mean"]).startswith("0.850 [") and told["judge spread of repeats"] == pytest.approx(0.071)
