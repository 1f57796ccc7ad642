"""An endpoint's answer → a journal entry: what was said, why it ended, and what it cost."""

from __future__ import annotations

from typing import Any

from ip2p.dataset.llm.journal import Paid
from ip2p.params import LlmParams

REFUSED = "refused"
_REFUSALS = (
    "content_filter",
    "content_policy_violation",
    "responsibleaipolicyviolation",  # Azure
    "invalid_prompt",  # OpenAI's reasoning models
    "data_inspection_failed",  # DashScope
    "content exists risk",  # DeepSeek
)
"""What the body of an error holds when a filter refused the request."""
_MOST_TOKENS = 10**8
"""A reply that claims more is not believed."""


class JunkError(Exception):
    """The body of an answer is not a reply."""


def price(section: LlmParams, tokens_in: int, tokens_out: int) -> float:
    """US dollars, at the batch rate if requests go by batch."""
    full = (tokens_in * section.price_in + tokens_out * section.price_out) / 1e6
    return full * (section.batch_discount if section.batch else 1.0)


def refusal(id: str, section: LlmParams) -> Paid:
    """A request that the endpoint's filter would not take: nothing is charged, and it is never asked again."""
    return Paid(id, "", REFUSED, section.model, 0, 0, 0.0)


def refuses(error: object) -> bool:
    """Whether the body of an error says that a content filter refused the request."""
    told = str(error).lower()
    return any(word in told for word in _REFUSALS)


def _tokens(usage: Any, key: str) -> int | None:
    count = usage.get(key) if isinstance(usage, dict) else None
    return count if isinstance(count, int) and 0 <= count <= _MOST_TOKENS else None


def read_answer(answer: Any, id: str, section: LlmParams, most: float) -> Paid:
    """A reply's body as a journal entry; one that does not tell its tokens costs `most`. Raises `JunkError` if it is none.

    A completion without text (all of it spent on thinking, say) is a reply: it was charged, and is not asked for again.
    """
    try:
        choice, usage = answer["choices"][0], answer.get("usage")
        message = choice.get("message") or {}
        refused = bool(message.get("refusal")) or choice.get("finish_reason") == "content_filter"
        text = choice["text"] if "text" in choice else message.get("content")
    except (KeyError, IndexError, TypeError, AttributeError) as error:
        raise JunkError(f"not a completion: {error!r}") from error
    finish = REFUSED if refused else str(choice.get("finish_reason"))
    model = str(answer.get("model") or section.model)
    tokens_in, tokens_out = (_tokens(usage, k) for k in ("prompt_tokens", "completion_tokens"))
    cost = most if tokens_in is None or tokens_out is None else price(section, tokens_in, tokens_out)
    return Paid(id, text if isinstance(text, str) and not refused else "", finish, model, tokens_in or 0, tokens_out or 0, cost)
