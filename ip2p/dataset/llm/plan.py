"""A dry run: how many requests, tokens and US dollars a run of the language model would take, without asking it anything."""

from __future__ import annotations

from dataclasses import dataclass

from ip2p.dataset.llm.prompt import request_for, types_asked
from ip2p.dataset.llm.reply import price
from ip2p.params import TripletsParams
from ip2p.records import Caption

_TOKENS_OUT = 60
"""Of a usual reply, estimated: an instruction of 8 words, a caption of 20, and the JSON around them."""


@dataclass(frozen=True, slots=True)
class Plan:
    """Estimated on the dear side: `cost` if replies are of usual length, `most` if each is as long as allowed (US dollars)."""

    requests: int
    tokens_in: int
    cost: float
    most: float
    budget: float
    prices: tuple[float, float]
    """Of a million tokens in and out, US dollars."""

    def lines(self) -> list[str]:
        """As a person reads it."""
        enough = "enough" if self.budget >= self.most else "may be reached" if self.budget >= self.cost else "NOT ENOUGH"
        return [
            f"requests    {self.requests}",
            f"tokens in   {self.tokens_in} (estimated from characters)",
            f"prices      ${self.prices[0]:g} and ${self.prices[1]:g} a million tokens in and out, as the parameters have them",
            f"cost        ${self.cost:.4f}, at most ${self.most:.4f}",
            f"budget      ${self.budget:g}: {enough}",
        ]


def plan_triplets(section: TripletsParams, captions: list[Caption]) -> Plan:
    """The plan for the first `section.count` requests (each dropped reply adds one more)."""
    format = "json_schema" if section.llm.format == "auto" else section.llm.format
    types = types_asked(section, format)
    asked = min(section.count, len(captions) * min(section.per_caption, len(types)))
    tokens_in = sum(
        request_for(captions[i % len(captions)].text, types[i % len(types)], section.llm, format).tokens_in for i in range(asked)
    )
    cost, most = (price(section.llm, tokens_in, asked * n) for n in (_TOKENS_OUT, section.llm.max_tokens))
    return Plan(asked, tokens_in, cost, most, section.llm.budget, (section.llm.price_in, section.llm.price_out))
