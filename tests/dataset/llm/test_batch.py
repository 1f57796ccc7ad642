import pytest

from ip2p.dataset.llm import batch
from ip2p.dataset.llm.client import BudgetError, EndpointError
from ip2p.dataset.llm.journal import Journal
from ip2p.dataset.read import read_triplets
from tests.dataset.llm.endpoint import endpoint
from tests.dataset.llm.test_writer import COUNT, journal, params, run


def batched(server, **llm):
    return params(server, llm={"batch": True, "format": "json_schema", "retries": 2, **llm})


def events(folder):
    return (folder / "work" / "journal.jsonl").read_text().splitlines(keepends=True)


def test_the_batch_api_gives_the_same_triplets_and_is_found_again(tmp_path):
    with endpoint() as server:
        run(params(server), tmp_path / "one")
        p = batched(server)
        report = run(p, tmp_path / "batch")
        sent = len(server.batches)
        (tmp_path / "batch" / "work" / "journal.jsonl").unlink()  # the worst crash: sent and charged, nothing written down
        run(p, tmp_path / "batch")
        assert len(server.batches) == sent
    assert read_triplets(tmp_path / "one" / "out") == read_triplets(tmp_path / "batch" / "out")
    assert report.extra["spent_usd"] == pytest.approx(report.extra["replies_paid"] * (300 * 0.15 + 50 * 0.6) / 2e6)


def test_a_batch_under_way_is_waited_for_whatever_the_parameters_became(tmp_path):
    with endpoint() as server:
        server.closed = True
        with pytest.raises(EndpointError, match="not now"):
            run(batched(server), tmp_path)
        server.closed = False
        report = run(batched(server, budget=5.0, concurrency=1), tmp_path)
        asked = server.files["file-0"].count(b"\n")
        assert report.kept == COUNT and max(server.paid.values()) == 1 and report.extra["replies_paid"] >= asked


@pytest.mark.parametrize("id_known", [True, False])
def test_a_batch_that_was_given_up_is_cancelled_and_what_it_did_is_not_paid_again(tmp_path, id_known):
    with endpoint(lines=lambda number: 200 if number % 2 else None) as server:  # it has come half way
        server.closed = True
        with pytest.raises(EndpointError, match="not now"):
            run(batched(server), tmp_path)
        server.closed = False
        if not id_known:
            (tmp_path / "work" / "journal.jsonl").write_text(events(tmp_path)[0])
        report = run(batched(server, batch=False), tmp_path)
        by_batch = sum(n % 2 for n in range(server.files["file-0"].count(b"\n")))
        assert "batch cancelled" in report.extra["troubles"]
        assert report.kept == COUNT and max(server.paid.values()) == 1 and 0 < by_batch < report.extra["replies_paid"]
        alone = report.extra["replies_paid"] - by_batch
        assert report.extra["spent_usd"] == pytest.approx((alone + by_batch / 2) * (300 * 0.15 + 50 * 0.6) / 1e6)


def test_what_batches_under_way_may_cost_is_not_there_for_others(tmp_path):
    with endpoint() as server:
        server.closed = True
        with pytest.raises(EndpointError):
            run(batched(server), tmp_path)
        with Journal(tmp_path / "work" / "journal.jsonl") as kept:
            most, spent = kept.committed, kept.spent
        assert most > 0 and spent == 0
        server.closed, server.slow = False, True
        with pytest.raises(BudgetError, match=r"batches under way"):  # other requests, within what is left of the budget
            run(batched(server, batch=False, temperature=0.1, budget=most), tmp_path)
        assert not server.paid
        server.slow = False
        run(batched(server, temperature=0.1), tmp_path)  # by then it has ended, and nobody wants it: it counts at what it cost
        with Journal(tmp_path / "work" / "journal.jsonl") as kept:
            assert kept.committed == 0


def test_a_line_of_a_batch_that_is_no_reply_counts_as_charged(tmp_path):
    junk = iter(["junk"])
    with endpoint(lines=lambda number: next(junk, 200)) as server:
        report = run(batched(server), tmp_path)
    assert "1 × batch line is not a reply" in report.extra["troubles"] and report.extra["answers_lost"] == 1
    assert report.extra["spent_usd"] > report.extra["replies_paid"] * (300 * 0.15 + 50 * 0.6) / 2e6


def test_a_crash_between_sending_a_batch_and_learning_its_id_does_not_send_it_twice(tmp_path):
    with endpoint() as server:
        server.closed = True
        with pytest.raises(EndpointError):
            run(batched(server), tmp_path)
        lines = events(tmp_path)
        assert '"id": ""' in lines[0] and '"id": "batch-0"' in lines[1]
        (tmp_path / "work" / "journal.jsonl").write_text(lines[0])
        server.closed = False
        run(batched(server), tmp_path)
        assert max(server.paid.values()) == 1
        (tmp_path / "work" / "journal.jsonl").write_text(lines[0])
        server.batches.clear()  # it never got there
        assert run(batched(server), tmp_path).kept == COUNT


def test_what_an_ended_batch_left_out_is_sent_again_and_nothing_else(tmp_path):
    with endpoint(lines=lambda number: 200 if number % 2 else None) as server:
        server.batch_status = "expired"
        with pytest.raises(EndpointError, match=r"no reply to 17 of 33 requests \(1 × batch expired\)"):
            run(batched(server), tmp_path)
        server.lines, server.batch_status = (lambda number: 200), "completed"
        assert run(batched(server), tmp_path).kept == COUNT
        assert max(server.paid.values()) == 1


def test_a_batch_that_failed_or_is_gone_is_given_up(tmp_path):
    with endpoint() as server:
        server.batch_status = "failed"
        with pytest.raises(EndpointError, match=r"batch-0 failed .*nothing was charged"):
            run(batched(server), tmp_path)
        server.batch_status, server.closed = "completed", True
        with pytest.raises(EndpointError, match="not now"):
            run(batched(server), tmp_path)
        server.closed = False
        server.batches.clear()
        report = run(batched(server), tmp_path)
        assert report.kept == COUNT and "1 × batch is gone" in report.extra["troubles"] and report.extra["answers_lost"] == 1


def test_a_line_that_was_refused_is_dropped_and_not_asked_again(tmp_path):
    with endpoint(lines=lambda number: 400 if number == 0 else 200) as server:
        report = run(batched(server), tmp_path)
        sent = len(server.batches)
        assert report.dropped_by_reason["model refused"] == sent
        run(batched(server), tmp_path)
        assert len(server.batches) == sent
    with journal(tmp_path) as opened:
        assert sum(r.finish == "refused" for r in opened.replies.values()) == sent


def test_a_batch_is_no_larger_than_the_endpoint_takes_and_several_are_under_way(tmp_path, monkeypatch):
    monkeypatch.setattr(batch, "MOST_BYTES", 20_000)
    with endpoint() as server:
        assert run(batched(server, batches=3), tmp_path).kept == COUNT
        assert len(server.batches) > server.most_batches == 3
        assert all(len(server.files[b["input_file_id"]]) <= 20_000 for b in server.batches.values())


def test_where_too_much_waits_batches_go_one_by_one(tmp_path, monkeypatch):
    monkeypatch.setattr(batch, "MOST_BYTES", 20_000)
    with endpoint() as server:
        server.room = 1
        report = run(batched(server), tmp_path)
        assert report.kept == COUNT and max(server.paid.values()) == 1 and "batches were too many at once" in report.extra["troubles"]
    with endpoint() as server:
        server.room = 0
        with pytest.raises(EndpointError, match="token_limit_exceeded"):
            run(batched(server), tmp_path / "full")


def test_where_too_much_waits_still_batches_become_smaller(tmp_path, monkeypatch):
    monkeypatch.setattr(batch, "FEWEST", 4)
    with endpoint() as server:
        server.most_lines = 10
        report = run(batched(server), tmp_path)
        taken = [b for b in server.batches.values() if b["status"] == "completed"]
        assert report.kept == COUNT and max(server.paid.values()) == 1
        assert all(server.files[b["input_file_id"]].count(b"\n") <= 10 for b in taken)


def test_a_batch_at_another_address_is_neither_given_up_nor_paid_again(tmp_path):
    with endpoint() as here, endpoint() as there:
        here.closed = True
        with pytest.raises(EndpointError, match="not now"):
            run(batched(here), tmp_path)
        with pytest.raises(EndpointError, match=rf"33 of these requests are in a batch at {here.url}; run with that address"):
            run(batched(there), tmp_path)
        assert not there.paid
        run(batched(there, model="other", batch=False), tmp_path)  # other requests, while that one is under way
        with journal(tmp_path) as kept:
            assert len(kept.batches) == 1 and kept.lost == 0 and kept.committed > 0
        here.closed = False
        assert run(batched(here), tmp_path).kept == COUNT
        assert max(here.paid.values()) == 1


@pytest.mark.parametrize("by_batch", [True, False])
def test_batches_that_failed_together_cost_no_run_each(tmp_path, monkeypatch, by_batch):
    monkeypatch.setattr(batch, "MOST_BYTES", 20_000)
    with endpoint() as server:
        server.batch_status = "failed"
        with pytest.raises(EndpointError, match="mend what it names"):
            run(batched(server), tmp_path)
        with Journal(tmp_path / "work" / "journal.jsonl") as kept:
            assert len(kept.batches) > 1
        server.batch_status = "completed"
        report = run(batched(server, batch=by_batch), tmp_path)
        assert report.kept == COUNT and max(server.paid.values()) == 1
