"""Data Docs that read offline: Great Expectations' pages pull styles and scripts from CDNs, so those are taken out.

A small style sheet of our own goes in; nothing in the pages then asks the network for anything.
"""

from __future__ import annotations

import re
from pathlib import Path

from ip2p.store import write_bytes

_REMOTE = re.compile(
    r"<script[^>]*\bsrc=\"https?://[^>]*>\s*</script>|<link[^>]*\bhref=\"https?://[^>]*>|<img[^>]*\bsrc=\"https?://[^>]*>", re.IGNORECASE
)
_STYLE = """<style>
body{font:15px/1.5 system-ui,sans-serif;color:#212529;max-width:1100px;margin:0 auto;padding:24px}
table{border-collapse:collapse;margin:8px 0 20px} td,th{border-bottom:1px solid #dee2e6;padding:6px 12px;text-align:left;vertical-align:top}
.text-success{color:#2b8a3e} .text-danger{color:#c92a2a} .badge{border:1px solid #adb5bd;border-radius:6px;padding:0 6px;margin:2px}
footer,.fixed-bottom,nav,.modal,.ge-index-page-tabs-title,.navbar,.sticky-top,button,.dropdown,form,.alert-dismissible{display:none}
.fa-check-circle:before{content:"\\2713"} .fa-times:before,.fa-times-circle:before{content:"\\2717"}
a{color:#1864ab}
</style></head>"""


def make_offline(docs: Path) -> None:
    """Rewrite every page under `docs` so that it needs no network."""
    for page in docs.rglob("*.html"):
        text = _REMOTE.sub("", page.read_text(encoding="utf-8"))
        write_bytes(page, text.replace("</head>", _STYLE, 1).encode())
