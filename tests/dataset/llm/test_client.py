import pytest

from ip2p.dataset.llm.client import EndpointError, key_of, open_api
from ip2p.params import JudgeParams, LlmParams
from tests.dataset.llm.endpoint import endpoint
from tests.dataset.llm.test_writer import COUNT, params, run

TEXT = {"format": "text"}


def test_what_a_gateway_gave_up_on_may_have_been_charged(tmp_path):
    with endpoint(first=[(504, {"message": "upstream timed out"}), (503, {"message": "busy"})]) as server:
        report = run(params(server, llm={**TEXT, "concurrency": 1}), tmp_path)
        greatest = params(server).triplets.llm.max_tokens * 0.6 / 1e6
    assert report.kept == COUNT and report.extra["answers_lost"] == 1
    assert report.extra["spent_usd"] > report.extra["replies_paid"] * (300 * 0.15 + 50 * 0.6) / 1e6 + greatest
    assert report.extra["troubles"] == "1 × HTTP 503: busy, 1 × HTTP 504: upstream timed out"


def test_an_account_without_credit_is_told_at_once_in_the_endpoints_words(tmp_path):
    spent = {"message": "You exceeded your current quota", "code": "insufficient_quota"}
    with endpoint(first=[(429, spent)] * 99) as server:
        with pytest.raises(EndpointError, match=r"answered 429 \(.*exceeded your current quota.*\); see to the account"):
            run(params(server, llm={**TEXT, "concurrency": 1}), tmp_path)
        assert len(server.first) == 98


@pytest.mark.parametrize("error", [{"code": "invalid_prompt", "message": "flagged"}, {"message": "Content Exists Risk"}])
def test_a_caption_that_a_filter_refuses_is_dropped_by_any_filters_name(tmp_path, error):
    with endpoint(first=[(400, error)]) as server:
        report = run(params(server, llm={**TEXT, "concurrency": 1}), tmp_path)
    assert report.kept == COUNT and report.dropped_by_reason["model refused"] == 1


def test_what_was_asked_is_told_with_a_refusal_that_is_none(tmp_path):
    with (
        endpoint(first=[(400, {"message": "no"})]) as server,
        pytest.raises(EndpointError, match=r"answered 400 \(.*\); asked was 'Caption: "),
    ):
        run(params(server, llm={**TEXT, "concurrency": 1}), tmp_path)


def test_a_parameter_that_is_not_taken_does_not_count_as_a_schema_that_is_not(tmp_path):
    with endpoint(unknown="max_tokens") as server:
        with pytest.raises(EndpointError, match="Unsupported parameter: 'max_tokens'"):
            run(params(server), tmp_path)
        report = run(params(server, llm={"max_tokens_field": "max_completion_tokens"}), tmp_path)
        assert report.extra["format"] == "json_schema" and all("response_format" in body for body in server.seen)


def test_where_nothing_is_kept_the_reasons_are_told(tmp_path):
    with (
        endpoint(reply=lambda caption, edit_type: "well") as server,
        pytest.raises(EndpointError, match=r"no triplet was kept of .* × reply"),
    ):
        run(params(server, llm=TEXT), tmp_path)


def test_a_key_is_sent_without_its_line_end_and_a_broken_one_is_told(monkeypatch):
    monkeypatch.setenv("OPENAI_API_KEY", "sk-sentinel\n")
    assert key_of(LlmParams()) == "sk-sentinel"
    for broken in ("sk-sent\ninel", "sk-sentinél"):
        monkeypatch.setenv("OPENAI_API_KEY", broken)
        with pytest.raises(EndpointError, match="OPENAI_API_KEY holds what no key has") as error:
            key_of(LlmParams())
        assert "sent" not in str(error.value)


def test_the_environment_moves_no_endpoint(monkeypatch):
    monkeypatch.setenv("OPENAI_API_KEY", "sk-sentinel")
    monkeypatch.setenv("OPENAI_BASE_URL", "http://127.0.0.1:1/v1")
    assert str(open_api(LlmParams()).base_url) == "https://api.openai.com/v1/"


@pytest.mark.parametrize(("section", "wanted"), [(LlmParams, "price_in and price_out"), (JudgeParams, "tokens_image")])
def test_a_model_that_somebody_bills_wants_prices_of_its_own(section, wanted):
    with pytest.raises(ValueError, match=wanted):
        section(base_url="https://example.com/v1", key_env="SOME_KEY", model="large")
    with pytest.raises(ValueError, match="or the budget bounds nothing"):
        JudgeParams(model="gpt-4o-mini", price_in=0.15, price_out=0.6)
    assert section(base_url="http://127.0.0.1:1/v1", model="large").price_in == section().price_in


def test_moderation_that_answers_something_else_is_asked_again(tmp_path):
    with endpoint() as server:
        server.verdicts = {"error": "not now"}
        report = run(params(server, llm={**TEXT, "moderation": "omni"}), tmp_path)
    assert report.kept == COUNT and "1 × moderation tried again" in report.extra["troubles"]
