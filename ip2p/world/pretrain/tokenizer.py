"""Byte-level BPE in CLIP's format, trained on the world's captions and instructions.

Vocabulary: 256 bytes, 256 word-final bytes, merges, start and end of text (the end has the highest id, as CLIP's pooling
wants). Any text can be encoded; the world's own words are single tokens.
"""

from __future__ import annotations

import json
import random
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from ip2p.world.edits import sample_any_edit
from ip2p.world.language import write_caption, write_instruction
from ip2p.world.scenes import sample_scene

if TYPE_CHECKING:
    from transformers import CLIPTokenizer

CONTEXT = 48
_START, _END = "<|startoftext|>", "<|endoftext|>"


def train_tokenizer(folder: Path, *, seed: int, texts: int = 20_000, merges: int = 700) -> CLIPTokenizer:
    """Train on `texts` captions and instructions and save `vocab.json` and `merges.txt` (among others) to `folder`."""
    from tokenizers import Tokenizer, models, pre_tokenizers, trainers
    from transformers import CLIPTokenizer

    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    model = Tokenizer(models.BPE(end_of_word_suffix="</w>"))
    model.pre_tokenizer = pre_tokenizers.Whitespace()
    trainer = trainers.BpeTrainer(
        vocab_size=len(alphabet) * 2 + merges, initial_alphabet=alphabet, end_of_word_suffix="</w>", show_progress=False
    )
    model.train_from_iterator(_texts(seed, texts), trainer)
    learned = [tuple(m) for m in json.loads(model.to_str())["model"]["merges"]]
    words = alphabet + [c + "</w>" for c in alphabet]
    words += [w for w in ("".join(m) for m in learned) if w not in set(words)]
    vocab = {w: i for i, w in enumerate([*words, _START, _END])}
    tokenizer = CLIPTokenizer(vocab=vocab, merges=learned, model_max_length=CONTEXT)
    tokenizer.save_pretrained(folder)
    return tokenizer


def _texts(seed: int, count: int) -> Iterator[str]:
    rng = random.Random(f"tokenizer/{seed}")
    for _ in range(count // 2):
        scene = sample_scene(rng)
        yield write_caption(scene, rng)
        yield write_instruction(sample_any_edit(scene, rng), scene, rng)
