"""Section of the server: `ip2p serve`."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field

from ip2p.params.base import Count, Positive, Section


class ServeParams(Section):
    """The editor behind HTTP. Keys come from the environment alone: IP2P_API_KEYS, separated by commas."""

    host: str = "127.0.0.1"
    """Address to listen on; any but a loopback address needs keys."""
    port: Annotated[int, Field(ge=0, le=65535)] = 8000
    """0 takes a free one."""
    hosts: tuple[str, ...] = ()
    """Names under which the server is reached, besides its address and localhost; a request for another name is refused."""
    editor: str | None = None
    """An editor folder; none: the registry's champion, followed as it changes."""
    fallback: str | None = "world"
    """What serves until the registry has a champion: a folder, or `world`, the embedded editor; none: nothing does."""
    poll_seconds: Positive = 5.0
    """How often the registry is asked who is champion."""
    batch: Count = 8
    """Most edits under way at once; they share the UNet's calls."""
    queue: Count = 16
    """Most edits that wait; above it requests are refused with 429."""
    max_steps: Count = 100
    """Most steps that a request may ask for."""
    max_pixels: Count = 16_000_000
    """Largest picture accepted, pixels."""
    max_megabytes: Positive = 32.0
    """Largest request body, MB."""
    rate: Annotated[int, Field(ge=0)] = 0
    """Edits a minute that one key (or, without keys, one address) may ask for; 0: any number."""
    database: str = "sqlite:///work/serve/edits.db"
    """History and feedback: a SQLAlchemy URL; IP2P_DATABASE_URL in the environment wins."""
    pictures: str = "work/serve/pictures"
    """Folder of the edited pictures and their sources."""
    keep: Count = 2000
    """Edits kept in the history; those with a vote are always kept."""
    keep_gb: Positive = 10.0
    """Disk that pictures may take beside those of edits with a vote, GB; the oldest edits go first."""
    drain_seconds: Positive = 30.0
    """How long SIGTERM waits for edits under way."""
