"""What Prometheus is told at `/metrics`."""

from __future__ import annotations

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram

REGISTRY = CollectorRegistry()
REQUESTS = Counter("ip2p_requests_total", "Requests answered", ["door", "code"], registry=REGISTRY)
EDITS = Counter("ip2p_edits_total", "Edits made", ["version"], registry=REGISTRY)
_SECONDS = (0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 120)
SECONDS = Histogram("ip2p_edit_seconds", "From asking to the picture", buckets=_SECONDS, registry=REGISTRY)
ROWS = Histogram("ip2p_edits_a_step", "Edits that share a step", buckets=(1, 2, 4, 8, 16, 32), registry=REGISTRY)
UNSTORED = Counter("ip2p_edits_not_stored_total", "Edits made that the history could not take", registry=REGISTRY)
WAITING = Gauge("ip2p_edits_waiting", "Edits that wait", registry=REGISTRY)
RUNNING = Gauge("ip2p_edits_running", "Edits under way", registry=REGISTRY)
SWAPS = Counter("ip2p_swaps_total", "Changes of the served version", ["outcome"], registry=REGISTRY)
VOTES = Counter("ip2p_votes_total", "Votes stored", ["kind"], registry=REGISTRY)
