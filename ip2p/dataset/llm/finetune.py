"""Hand-written triplets → a fine-tuned writer (the reference: 700 triplets, one epoch): check, upload, follow, record.

The job's id is written down before it is followed, so that a stopped command goes on with the same job.
"""

from __future__ import annotations

import json
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import openai

from ip2p.dataset.captions import clean, read_jsonl, repetition_key
from ip2p.dataset.edit_types import TAXONOMY
from ip2p.dataset.llm.client import EndpointError, address_of, key_of
from ip2p.dataset.llm.prompt import ASK, LONGEST_CAPTION, LONGEST_INSTRUCTION, SPLIT, STOP, bare, messages
from ip2p.errors import DataError
from ip2p.params import LlmParams
from ip2p.store import fingerprint, read_json, write_bytes, write_json

FEWEST = 10
"""Examples that OpenAI's fine-tuning asks for."""
_KEYS = {"caption": ("caption", "input"), "instruction": ("instruction", "edit"), "edited_caption": ("edited_caption", "output")}
_ENDED = {"succeeded", "failed", "cancelled"}


@dataclass(frozen=True, slots=True)
class Example:
    """A hand-written triplet."""

    caption: str
    instruction: str
    edited_caption: str
    edit_type: str


def read_examples(path: Path) -> list[Example]:
    """Hand-written triplets of a JSONL file: `caption` or `input`, `instruction` or `edit`, `edited_caption` or `output`, `edit_type`.

    Raises `DataError` naming the first bad line.
    """
    examples: dict[str, Example] = {}
    for number, row in read_jsonl(path, '{"caption": "…", "instruction": "…", "edited_caption": "…", "edit_type": "…"}'):
        example = _example(row, f"{path}:{number}")
        key = repetition_key(f"{example.caption} {example.instruction}")
        if key in examples:
            raise DataError(f"{path}:{number}: says the same as an earlier line; delete one of them")
        examples[key] = example
    if len(examples) < FEWEST:
        raise DataError(f"{path}: holds {len(examples)} triplets, fine-tuning needs at least {FEWEST}")
    return list(examples.values())


def training_file(examples: list[Example], *, completion: bool) -> bytes:
    """The file that is uploaded: conversations, or the reference's prompt and completion with its delimiters."""
    return "".join(json.dumps(_line(e, completion), ensure_ascii=False) + "\n" for e in examples).encode()


def finetune(
    section: LlmParams, path: Path, *, work: Path, base: str, epochs: int = 1, say: Callable[[str], None] = print, wait: float = 10.0
) -> str:
    """Fine-tune `base` on the triplets of `path`; returns the new model's name. Raises `EndpointError` if the job fails."""
    examples = read_examples(path)
    counts = Counter(e.edit_type for e in examples)
    say(f"{len(examples)} triplets: " + ", ".join(f"{t} {n}" for t, n in counts.most_common()))
    data = training_file(examples, completion=section.format == "completion")
    record = work / f"finetune-{fingerprint(section.base_url, base, epochs, data.decode())}.json"
    api = openai.OpenAI(api_key=key_of(section), base_url=address_of(section), timeout=section.timeout, max_retries=section.retries)
    work.mkdir(parents=True, exist_ok=True)
    try:
        job = _started(api, record, data, base, epochs, say)
        job = _follow(api, job, say, wait)
    except openai.APIError as error:
        raise EndpointError(f"finetune: {' '.join(str(error).split())[:200]}; run again to go on with the same job") from error
    except (AttributeError, ValueError) as error:
        raise EndpointError(
            f"finetune: {address_of(section)} answered with something else than the fine-tuning API; has it one?"
        ) from error
    if job.status != "succeeded":
        record.unlink()
        raise EndpointError(f"finetune: job {job.id} {job.status}: {getattr(job.error, 'message', None) or 'no reason given'}")
    write_json(record, read_json(record) | {"model": job.fine_tuned_model, "trained_tokens": job.trained_tokens})
    return str(job.fine_tuned_model)


def _started(api: openai.OpenAI, record: Path, data: bytes, base: str, epochs: int, say: Callable[[str], None]) -> Any:
    """The job of this record; made if there is none. Its file is on record before it, so that a crash between makes no second one."""
    held = read_json(record) if record.exists() else {}
    if "job" in held:
        say(f"going on with job {held['job']}")
        return api.fine_tuning.jobs.retrieve(held["job"])
    if not held:
        file = api.files.create(file=("triplets.jsonl", data), purpose="fine-tune")
        held = {"file": file.id, "base": base, "epochs": epochs, "triplets": data.count(b"\n")}
        write_bytes(record.with_suffix(".jsonl"), data)
        write_json(record, held)
    job: Any = next((j for j in api.fine_tuning.jobs.list() if j.training_file == held["file"]), None)
    job = job or api.with_options(max_retries=0).fine_tuning.jobs.create(
        model=base, training_file=held["file"], hyperparameters={"n_epochs": epochs}, suffix="ip2p"
    )
    write_json(record, held | {"job": job.id})
    say(f"job {job.id} on {base}")
    return job


def _follow(api: openai.OpenAI, job: Any, say: Callable[[str], None], wait: float) -> Any:
    told: set[str] = set()
    while True:
        for event in reversed(api.fine_tuning.jobs.list_events(job.id, limit=50).data):
            if event.id not in told:
                told.add(event.id)
                say(f"  {event.message}")
        job = api.fine_tuning.jobs.retrieve(job.id)
        if job.status in _ENDED:
            return job
        time.sleep(wait)


def _example(row: dict[str, Any], where: str) -> Example:
    texts = {}
    for name, keys in _KEYS.items():
        text = next((row[k] for k in keys if isinstance(row.get(k), str) and row[k].strip()), None)
        if text is None:
            raise DataError(f"{where}: no `{'` or `'.join(keys)}`")
        texts[name] = clean(text)
    edit_type = row.get("edit_type", "")
    if not isinstance(edit_type, str) or edit_type not in TAXONOMY:
        raise DataError(f"{where}: edit_type {edit_type!r} is unknown; one of {', '.join(TAXONOMY)}")
    if len(texts["instruction"]) > LONGEST_INSTRUCTION or max(len(texts["caption"]), len(texts["edited_caption"])) > LONGEST_CAPTION:
        raise DataError(
            f"{where}: longer than a reply may be ({LONGEST_INSTRUCTION} characters of instruction, {LONGEST_CAPTION} of caption)"
        )
    if bare(texts["caption"]) == bare(texts["edited_caption"]):
        raise DataError(f"{where}: the edited caption equals the caption")
    return Example(**texts, edit_type=edit_type)


def _line(example: Example, completion: bool) -> dict[str, Any]:
    if completion:
        return {"prompt": example.caption + ASK, "completion": f" {example.instruction}{SPLIT}{example.edited_caption}{STOP}"}
    reply = {"instruction": example.instruction, "edited_caption": example.edited_caption, "edit_type": example.edit_type}
    asked = messages(example.caption, example.edit_type)
    return {"messages": [*asked, {"role": "assistant", "content": json.dumps(reply, ensure_ascii=False)}]}
