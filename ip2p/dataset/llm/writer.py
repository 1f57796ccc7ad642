"""Captions → triplets by a language model (paper §3.1.1): in rounds until enough are kept; every drop has its reason.

Which caption is asked for which edit type depends on what was kept before, never on the order in which replies arrive: the
same journal gives the same triplets.
"""

from __future__ import annotations

import asyncio
import math
from collections import Counter, defaultdict
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

from ip2p.dataset.edit_types import EDIT_TYPES, TAXONOMY
from ip2p.dataset.llm.batch import ask
from ip2p.dataset.llm.client import BudgetError, Client, EndpointError, Request, open_api
from ip2p.dataset.llm.journal import Journal
from ip2p.dataset.llm.moderation import moderate
from ip2p.dataset.llm.prompt import BadReplyError, Format, bare, parse, request_for, types_asked
from ip2p.dataset.llm.reply import REFUSED
from ip2p.dataset.near import NearDuplicates
from ip2p.params import TripletsParams
from ip2p.records import Caption, Triplet
from ip2p.store import fingerprint

Progress = Callable[[int, int], None]
_MOST = 1.5
"""Times its share that an edit type may have: a model may write another kind of edit than it was asked for."""
Wave = list[tuple[Caption, str, Request]]
"""Captions, the edit types they are asked for, and the requests."""


@dataclass
class Written:
    """What a writer made of its captions."""

    triplets: list[Triplet] = field(default_factory=list)
    seen: int = 0
    dropped: Counter[str] = field(default_factory=Counter)
    extra: dict[str, float | str] = field(default_factory=dict)


def write_with_llm(section: TripletsParams, captions: list[Caption], *, journal: Path, progress: Progress) -> Written:
    """Up to `section.count` triplets of these captions. Raises `EndpointError` if the endpoint cannot do it."""
    with Journal(journal) as opened:
        return asyncio.run(_write(section, captions, opened, progress))


async def _write(section: TripletsParams, captions: list[Caption], journal: Journal, progress: Progress) -> Written:
    async with open_api(section.llm) as api:
        client = Client(section.llm, journal, api)
        format = await _settled_format(client)
        before = journal.spent
        desk = _Desk(section, captions, format)
        try:
            while wave := desk.next_wave():
                await _ask_wave(client, desk, wave, progress)
        except BudgetError as error:
            if not desk.written.triplets:
                raise BudgetError(f"{error}; no triplet was kept ({desk.told_drops()})") from error
            desk.written.extra["stopped"] = str(error)
        if not desk.written.triplets:
            raise EndpointError(f"{section.llm.where}: no triplet was kept of {desk.written.seen} requests ({desk.told_drops()})")
        desk.written.extra |= _account(client, before, format)
        return desk.written


async def _ask_wave(client: Client, desk: _Desk, wave: Wave, progress: Progress) -> None:
    flagged = await moderate(client, [c.text for c, _, _ in wave])
    safe = [w for w in wave if w[0].text not in flagged]
    desk.drop("caption flagged by moderation", len(wave) - len(safe))
    requests = [r for _, _, r in safe]
    held, before = sum(r.id in client.journal.replies for r in requests), len(client.journal.replies)
    stopped: BudgetError | None = None
    try:
        await ask(client, requests, lambda replies: progress(held + replies - before, len(requests)))
    except BudgetError as error:
        stopped = error
    drafts = desk.read(safe, client.journal)
    flagged = await moderate(client, [text for t in drafts for text in (t.instruction, t.edited_caption)])
    for triplet in drafts:
        desk.take(triplet, flagged=triplet.instruction in flagged or triplet.edited_caption in flagged)
    if stopped is not None:
        raise stopped


class _Desk:
    """The state of the writing: which caption comes next, what was kept, what was dropped and why."""

    def __init__(self, section: TripletsParams, captions: list[Caption], format: Format) -> None:
        self.section, self.captions, self.format = section, captions, format
        self.types = types_asked(section, format)
        self.written = Written()
        self.used = Counter(dict.fromkeys(self.types, 0))
        self.asked: defaultdict[str, set[str]] = defaultdict(set)
        self.position = 0
        self.ids: set[str] = set()
        self.weight = {t: section.weights.get(t, 1) for t in self.types}
        share = _MOST * section.count / sum(self.weight.values())
        self.most = {t: math.ceil(share * weight) for t, weight in self.weight.items()}
        self.near = NearDuplicates(section.near_duplicate)

    def next_wave(self) -> Wave:
        """Requests for as many captions as triplets are missing; empty if there is nothing more to ask."""
        short = self.section.count - len(self.written.triplets)
        end = min(self.position + short, len(self.captions) * min(self.section.per_caption, len(self.types)))
        planned = Counter(self.used)
        wave: Wave = []
        for position in range(self.position, end):
            caption = self.captions[position % len(self.captions)]
            left = (t for t in self.types if t not in self.asked[caption.id])
            edit_type = min(left, key=lambda t: (planned[t] / self.weight[t], self.types.index(t)))
            planned[edit_type] += 1
            self.asked[caption.id].add(edit_type)
            wave.append((caption, edit_type, request_for(caption.text, edit_type, self.section.llm, self.format)))
        self.position = end
        self.written.seen += len(wave)
        return wave

    def drop(self, reason: str, count: int = 1) -> None:
        """Count drops."""
        if count:
            self.written.dropped[reason] += count

    def told_drops(self) -> str:
        """The drops so far, as a person reads them."""
        return ", ".join(f"{n} × {reason}" for reason, n in self.written.dropped.most_common()) or "none was written"

    def read(self, wave: Wave, journal: Journal) -> list[Triplet]:
        """Drafts of the wave's replies; what is no edit is dropped (the reference's rules)."""
        drafts = []
        for caption, edit_type, request in wave:
            paid = journal.replies.get(request.id)
            if paid is None:
                self.drop("no reply")
            elif paid.finish == REFUSED:
                self.drop("model refused")
            elif paid.finish == "length":
                self.drop("reply too long")
            else:
                try:
                    reply = parse(paid.text, edit_type, self.format)
                except BadReplyError as error:
                    self.drop(str(error))
                    continue
                drafts.append(Triplet(caption, reply.instruction, reply.edited_caption, reply.edit_type, f"llm:{paid.model}"))
        return drafts

    def take(self, triplet: Triplet, *, flagged: bool) -> None:
        """Keep a draft or drop it for the first reason that holds."""
        caption, edited = bare(triplet.caption.text), bare(triplet.edited_caption)
        if flagged:
            self.drop("edit flagged by moderation")
        elif caption == edited:
            self.drop("edited caption equals its caption")
        elif bare(triplet.instruction) in (caption, edited):
            self.drop("instruction repeats a caption")
        elif triplet.edit_type not in self.used:
            self.drop("edit type not asked for")
        elif self.used[triplet.edit_type] >= self.most[triplet.edit_type]:
            self.drop("its edit type has more than its share")
        elif triplet.id in self.ids or not self.near.is_new(f"{triplet.caption.text} {triplet.instruction} {triplet.edited_caption}"):
            self.drop("near-duplicate of an earlier triplet")
        else:
            self.ids.add(triplet.id)
            self.used[triplet.edit_type] += 1
            self.written.triplets.append(triplet)


async def _settled_format(client: Client) -> Format:
    """The format to ask in; `auto` asks the endpoint once, with a caption of our own, if it takes a JSON schema; the journal remembers."""
    section = client.section
    if section.format != "auto":
        return section.format
    endpoint = fingerprint("endpoint", section.base_url, section.model)
    if endpoint not in client.journal.formats:
        try:
            await _try_format(client, "json_schema")
            format = "json_schema"
        except EndpointError as error:
            if "answered 400" not in str(error) and "answered 422" not in str(error):
                raise
            await _try_format(client, "text")  # it may have been another parameter that it did not take
            format = "text"
        client.journal.settle(endpoint, format)
    return "json_schema" if client.journal.formats[endpoint] == "json_schema" else "text"


async def _try_format(client: Client, format: Format) -> None:
    """Ask about a caption of our own. Raises `EndpointError` if the endpoint does not take it."""
    probe = TAXONOMY[EDIT_TYPES[0]]
    await client.ask_all([request_for(probe.caption, probe.name, client.section, format)], lambda _: None, most_failed=0.0)


def _account(client: Client, before: float, format: Format) -> dict[str, float | str]:
    journal = client.journal
    return {
        "format": format,
        "spent_usd": round(journal.spent, 6),
        "spent_now_usd": round(journal.spent - before, 6),
        "replies_paid": len(journal.replies),
        "answers_lost": journal.lost,
        "troubles": client.told_troubles(),
    }
