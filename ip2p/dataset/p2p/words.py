"""Two captions' tokens → which target token takes which source token's attention map (Hertz et al. 2022, §3.2).

Equal runs and swapped runs of one length map one to one; of two lengths, each source token is shared out evenly over the
target's; inserted tokens are new.
"""

from __future__ import annotations

from collections.abc import Sequence
from difflib import SequenceMatcher

import torch
from torch import Tensor


def align_words(source: Sequence[int], target: Sequence[int]) -> tuple[Tensor, Tensor]:
    """Weights `LL` (source token, target token), columns of 0 for new tokens; and `L`, 1 for new tokens."""
    words_LL = torch.zeros(len(source), len(target))
    for kind, s0, s1, t0, t1 in SequenceMatcher(None, source, target, autojunk=False).get_opcodes():
        if kind == "equal" or (kind == "replace" and s1 - s0 == t1 - t0):
            for offset in range(t1 - t0):
                words_LL[s0 + offset, t0 + offset] = 1
        elif kind == "replace":
            words_LL[s0:s1, t0:t1] = 1 / (t1 - t0)
    return words_LL, (words_LL.sum(0) == 0).float()
