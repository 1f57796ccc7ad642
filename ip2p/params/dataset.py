"""Sections of the stages that make data: triplets, pairs, filter, validate."""

from __future__ import annotations

from typing import Annotated, ClassVar, Literal, Self

from pydantic import ConfigDict, Field, model_validator

from ip2p.params.base import Count, Positive, Section, Share, Similarity


class LlmParams(Section):
    """A language model behind any OpenAI-compatible endpoint (reference: GPT-3 davinci, fine-tuned on 700 triplets)."""

    where: ClassVar[str] = "triplets.llm"
    """Where in params.yaml it stands, for messages."""

    base_url: Annotated[str, Field(pattern=r"^https?://[^\s/]")] | None = None
    """Such as `http://127.0.0.1:8000/v1` (vLLM, Ollama, llama.cpp …); none: api.openai.com."""
    model: str = "gpt-4o-mini"
    """The endpoint's name of the model."""
    key_env: Annotated[str, Field(pattern=r"^[A-Z][A-Z0-9_]*$")] | None = None
    """Name of the environment variable that holds the key; never the key. None: OPENAI_API_KEY for OpenAI, no key elsewhere."""
    format: Literal["auto", "json_schema", "text", "completion"] = "auto"
    """Structured output, text that is parsed, or the reference's completion format, for models fine-tuned to it, which are told the
    caption alone: their edits' types are unknown. `auto`: structured where the endpoint has it."""
    temperature: Annotated[float, Field(ge=0, le=2)] | None = 0.7
    top_p: Share | None = 1.0
    frequency_penalty: Annotated[float, Field(ge=-2, le=2)] | None = 0.1
    """The reference's sampling; `null` leaves one out, for models that refuse it."""
    max_tokens: Count = 256
    """Most tokens of a reply."""
    max_tokens_field: Literal["max_tokens", "max_completion_tokens"] = "max_tokens"
    """What the endpoint calls that: OpenAI's reasoning models want the second."""
    concurrency: Annotated[int, Field(ge=1, le=1024)] = 16
    """Requests under way at once."""
    timeout: Positive = 60.0
    """Seconds until an answer counts as lost."""
    retries: Annotated[int, Field(ge=0, le=20)] = 6
    """Times that a request is sent again after a failure that may pass."""
    backoff: Positive = 0.5
    """Seconds of the first wait; it doubles, with jitter, up to a minute. `Retry-After` wins."""
    max_failed: Share = 0.01
    """Share of requests that may stay without a reply before the stage gives up."""
    batch: bool = False
    """Whether requests go by the Batch API: within a day, at `batch_discount` of the price."""
    batch_discount: Share = 0.5
    """Share of the price that a batch costs."""
    batches: Count = 4
    """Batches under way at once; one at a time where the endpoint says that too much waits."""
    poll: Positive = 30.0
    """Seconds between looks at a batch."""
    moderation: str | None = None
    """Moderation model of the endpoint that reads caption, instruction and edited caption, such as `omni-moderation-latest`."""
    price_in: Annotated[float, Field(ge=0)] = 0.15
    price_out: Annotated[float, Field(ge=0)] = 0.60
    """US dollars a million tokens, those of the default model; another wants its own (0 for a server of yours that asks for a key)."""
    budget: Positive = 10.0
    """US dollars that are never exceeded, at those prices."""

    prices: ClassVar[tuple[str, ...]] = ("price_in", "price_out")
    """What another model that somebody bills wants its own of."""

    @model_validator(mode="after")
    def _price_of_the_model(self) -> Self:
        usual = str(type(self).model_fields["model"].default)
        billed = self.base_url is None or self.key_env is not None  # a server of one's own has no key, or a price of 0
        if billed and not self.model.startswith(usual) and not set(self.prices) <= self.model_fields_set:
            raise ValueError(f"{' and '.join(self.prices)} stand at {usual}'s; give those of {self.model}, or the budget bounds nothing")
        return self


class TripletsParams(Section):
    """Captions to triplets (paper §3.1.1)."""

    writer: Literal["world", "llm"] = "world"
    """Who writes instructions and edited captions: the world's grammar, or a language model (`llm`)."""
    captions: str | None = None
    """`FILE[:COLUMN]` (JSONL, CSV, TSV, Parquet) or `hf:NAME[:SPLIT[:COLUMN]]`; without it captions of random scenes of the world."""
    count: Count = 240
    """Triplets to write, balanced over edit types (by `weights`, where there are any)."""
    edit_types: tuple[str, ...] | None = None
    """Kinds of edit to ask for; none: all that the writer knows."""
    weights: dict[str, Positive] = {}
    """How often a kind of edit is asked for, relative to the others (1 if not named): 2 for one that is done badly so far, say."""
    per_caption: Count = 1
    """Most triplets that a language model writes for one caption, each of another edit type."""
    near_duplicate: Share = 0.9
    """A language model's triplet is dropped if as similar to an earlier one (Jaccard of word 3-grams); 1: only equal ones."""
    llm: LlmParams = LlmParams()
    """The language model, if one writes."""

    @model_validator(mode="after")
    def _distinct(self) -> TripletsParams:
        if len(set(self.edit_types or ())) < len(self.edit_types or ()):
            raise ValueError("edit_types: names one twice, name each once")
        return self


class PairsParams(Section):
    """Triplets to image pairs by Prompt-to-Prompt (paper §3.1.2)."""

    samples: Count = 3
    """Most pairs sampled for a triplet (paper: 100)."""
    strategy: Literal["best_of_n", "adaptive"] = "best_of_n"
    """`best_of_n`: every sample is made and stored (the paper's). `adaptive`: a triplet stops once `filter.keep` of its pairs pass
    the filter's thresholds, or none of `patience` did; pairs that do not pass are counted, not stored."""
    patience: Count = 16
    """Samples after which a triplet without a passing pair is given up (adaptive)."""
    abandon_at: Share = 0.0
    """Share of the steps after which a sample whose predicted clean images are hopeless is abandoned; 0: never."""
    abandon_margin: Annotated[float, Field(ge=0, le=1)] = 0.1
    """By how much a prediction must miss the filter's thresholds to be hopeless."""
    method: Literal["self_attention", "cross_attention", "both", "none"] = "self_attention"
    """Prompt-to-Prompt method (ip2p/dataset/p2p): the reference's is self_attention."""
    steps: Annotated[int, Field(ge=2, le=1000)] = 20
    """Sampling steps (reference: 100)."""
    solver: Literal["euler_ancestral", "dpmpp_2m"] = "euler_ancestral"
    """Euler ancestral (the reference's), or DPM-Solver++(2M), as good in about half of the steps."""
    guidance: tuple[Positive, Positive] = (3.0, 6.0)
    """Range of the classifier-free guidance scale, drawn a sample (reference: 7.5–15)."""
    engine: Literal["processes", "ray"] = "processes"
    """Where the units are made: on processes of this machine, or on a Ray cluster (`pip install 'ip2p[ray]'`, by the flow)."""
    ray_address: str | None = None
    """Such as `ray://head:10001`; none: a cluster of this machine, for the time of the stage."""
    p2p: tuple[Share, Share] = (0.1, 0.9)
    """Range of the share of steps that share attention, drawn a sample (paper: 0.1–0.9)."""
    negative_prompt: str = ""
    """What guidance leads away from."""
    unit: Count = 16
    """Triplets a shard: the unit of work, retry and resumption."""
    batch: Annotated[int, Field(ge=0)] = 8
    """Pairs sampled at once; 0: what fits into the GPU's free memory (8 on a CPU)."""
    workers: Count = 2
    """Processes; each loads the models once. On a Ray cluster: the number of its GPUs (twice as many units are kept under way); the stage
    itself must start on a machine that has a GPU, too."""

    @model_validator(mode="after")
    def _ordered(self) -> PairsParams:
        for name in ("guidance", "p2p"):
            low, high = getattr(self, name)
            if low > high:
                raise ValueError(f"{name}: the range [{low}, {high}] is empty, write the smaller number first")
        return self


class JudgeParams(LlmParams):
    """A vision language model behind an OpenAI-compatible endpoint, as judge of edits. Name a pinned version of the model.

    With `batch` the filter waits once for about half a gigabyte of pictures, and again for the next best of those that fell.
    """

    where: ClassVar[str] = "filter.judge"
    prices: ClassVar[tuple[str, ...]] = (*LlmParams.prices, "tokens_image")
    model: str = "gpt-4o-2024-11-20"
    moderation: None = None
    """A judge's questions are not moderated."""
    temperature: Annotated[float, Field(ge=0, le=2)] | None = 0.0
    frequency_penalty: Annotated[float, Field(ge=-2, le=2)] | None = None
    format: Literal["json_schema", "text"] = "json_schema"  # type: ignore[assignment]
    max_tokens: Count = 300
    price_in: Annotated[float, Field(ge=0)] = 2.50
    price_out: Annotated[float, Field(ge=0)] = 10.0
    repeats: Annotated[int, Field(ge=1, le=20)] = 1
    """Times that each pair is judged; its score is the mean."""
    least: Share = 0.6
    """Least score of a pair, 0 to 1."""
    side: Annotated[int, Field(ge=64, le=2048)] = 512
    """Longest side at which the pictures are sent, pixels."""
    tokens_image: Count = 800
    """Tokens that a picture costs at most, for the budget (gpt-4o: 255 of 512 pixels; gpt-4o-mini bills 8,500 for the same)."""


class EvaluateJudgeParams(JudgeParams):
    """The same, for the headline's edits."""

    where: ClassVar[str] = "evaluate.judge"


class TypeThresholds(Section):
    """An edit type's own thresholds, where they differ from the common ones."""

    caption: Similarity | None = None
    image: Similarity | None = None
    direction: Similarity | None = None
    copy_limit: Similarity | None = Field(default=None, alias="copy")

    model_config = ConfigDict(extra="forbid", frozen=True, populate_by_name=True)


class FilterParams(Section):
    """Image pairs to a dataset by CLIP (paper §3.1.2; reference: 0.2, 0.2, 0.7, 0.2, best 4)."""

    chain: tuple[Literal["clip", "alignment", "degenerate", "duplicates", "embedding", "unsafe"], ...] = (
        "clip",
        "degenerate",
        "alignment",
        "duplicates",
    )
    """Filters in the order in which they decide (ip2p/dataset/filters)."""
    caption: Similarity = 0.2
    """Least similarity of each image to its caption."""
    image: Similarity = 0.7
    """Least similarity of the two images."""
    direction: Similarity = 0.2
    """Least cosine between the change in image and the change in caption."""
    copy_limit: Similarity = Field(default=1.0, alias="copy")
    """Greatest similarity of the two images: above it the pair is a copy (reference: no limit)."""
    by_type: dict[str, TypeThresholds] = {}
    """Thresholds of single edit types, such as those that `ip2p filter calibrate` finds."""
    shift: Share = 1.0
    """Greatest shift of one image against the other, as a share of the side (reference: no limit)."""
    zoom: Share = 1.0
    """Greatest zoom of one image against the other, as a difference from 1 (reference: no limit)."""
    outside: Share = 1.0
    """Greatest mean change outside the edited region, 0 to 1 (reference: no limit)."""
    contrast: Share = 0.02
    """Least standard deviation of an image's grey values; a picture of one colour has 0."""
    burnt: Share = 0.9
    """Greatest share of an image that is pure black or white."""
    near_bits: Annotated[int, Field(ge=0, le=8)] = 3
    """Greatest distance of two pairs' embedding codes, bits of 64, at which the later is a near-duplicate (`embedding`)."""
    unsafe: Share = 0.5
    """Greatest probability that an image is unsafe, by `models.safety` (`unsafe`)."""
    judge: JudgeParams | None = None
    """A vision language model that looks at what all other filters keep; none: not asked."""
    keep: Count = 4
    """Most pairs kept a triplet, best direction first."""
    splits: tuple[Share, Share] = (0.05, 0.05)
    """Shares of triplets set apart for validation and test."""

    model_config = ConfigDict(extra="forbid", frozen=True, populate_by_name=True)

    @model_validator(mode="after")
    def _leaves_some(self) -> FilterParams:
        if sum(self.splits) >= 1:
            raise ValueError(f"splits: {list(self.splits)} leave nothing to train on, their sum must be below 1")
        return self


class ValidateParams(Section):
    """What a dataset must be before anyone trains on it."""

    min_pairs: Count = 50
    """Fewest examples in the training split."""
    max_share: Share = 0.5
    """Greatest share of one edit type."""
    min_side: Count = 64
    """Shortest side of an image, pixels."""
    max_instruction: Count = 200
    """Longest instruction, characters."""
    benchmarks: tuple[str, ...] = ()
    """Files of captions (as `triplets.captions` reads them) that no example may come from: what the editor will be judged on. DVC sees
    their changes if they lie in `captions/`."""
    max_drift: Share = 1.0
    """Greatest change of the shares of edit types against the last validated dataset (total variation distance); 1: any."""
