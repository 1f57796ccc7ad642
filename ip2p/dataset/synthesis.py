"""Triplet and draw → a scored image pair (paper §3.1.2): many pairs a batch, each with its own p2p and guidance.

Both images share the initial and every step's ancestral noise; attention is shared by the chosen Prompt-to-Prompt method.
Texts are embedded once each; CLIP scores are computed on the device, where the images are. Rows of the UNet's batch: source
and target without text, then source and target with text.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import torch
from torch import Tensor

from ip2p.clip import Clip, Similarities, image_features, load_clip, similarities, text_features
from ip2p.dataset.p2p.processor import Steering, install, plan_step
from ip2p.dataset.p2p.words import align_words
from ip2p.dataset.thresholds import Similar, reject_reason
from ip2p.diffusion import Diffusion, decode_latents, encode_text, run_guided, run_unet
from ip2p.models import load_diffusion, placement
from ip2p.params import FilterParams, ModelsParams, PairsParams
from ip2p.records import Draw, Triplet
from ip2p.safety import Safety, load_safety
from ip2p.sampler import Predict, Schedule, advance, begin, draw_noise, make_schedule

_TEXTS_AT_ONCE = 32
ABANDONED = "abandoned on its predicted images"


@dataclass(frozen=True)
class Synthesiser:
    """Models of one worker, ready to sample; `texts` remembers embeddings of the unit under way."""

    teacher: Diffusion
    clip: Clip
    steering: Steering
    params: PairsParams
    thresholds: FilterParams
    seed: int
    negative_1LD: Tensor
    safety: Safety | None = None
    texts: dict[str, tuple[Tensor, Tensor]] = field(default_factory=dict)


@dataclass(frozen=True)
class Made:
    """Pairs of a batch that were sampled to the end; images in [0, 1], CLIP's features `BD` of both, and which draws they are of."""

    before_BCHW: Tensor
    after_BCHW: Tensor
    scores: list[Similar]
    features: tuple[Tensor, Tensor]
    picks: list[int]


def free_pairs(models: ModelsParams) -> int:
    """How many image pairs can be sampled at once: 8 on a CPU; on a GPU from its free memory and what two sizes of batch take."""
    device, dtype = placement(models)
    if device.type != "cuda":
        return 8
    teacher = load_diffusion(models.teacher, device=device, dtype=dtype)
    side, text = teacher.unet.config.sample_size, encode_text(teacher, [""])
    peaks = []
    for pairs in (1, 3):
        torch.cuda.reset_peak_memory_stats(device)
        rows = torch.zeros(4 * pairs, teacher.latent_channels, side, side, device=device)
        with torch.inference_mode():
            run_unet(teacher, rows, torch.tensor(500.0), text.expand(len(rows), -1, -1))
            decode_latents(teacher, rows[: 2 * pairs])
        peaks.append(torch.cuda.max_memory_allocated(device))
    a_pair = max(1, (peaks[1] - peaks[0]) // 2)
    free, _ = torch.cuda.mem_get_info(device)
    return int(max(1, min(256, 0.8 * free // a_pair)))


def load_synthesiser(models: ModelsParams, section: PairsParams, thresholds: FilterParams, seed: int) -> Synthesiser:
    """Load teacher and CLIP and install the Prompt-to-Prompt method."""
    device, dtype = placement(models)
    teacher = load_diffusion(models.teacher, device=device, dtype=dtype, compiled=models.compile)
    steering = install(teacher.unet, section.method)
    clip = load_clip(models.clip, device=device)
    safety = load_safety(models.safety, device=device) if models.safety else None
    return Synthesiser(teacher, clip, steering, section, thresholds, seed, encode_text(teacher, [section.negative_prompt]), safety)


def remember_texts(maker: Synthesiser, triplets: list[Triplet]) -> None:
    """Embed every caption of a unit once, for the UNet and for CLIP; forgets those of the last unit."""
    distinct = list(dict.fromkeys(text for t in triplets for text in (t.caption.text, t.edited_caption)))
    maker.texts.clear()
    for first in range(0, len(distinct), _TEXTS_AT_ONCE):
        some = distinct[first : first + _TEXTS_AT_ONCE]
        maker.texts.update(zip(some, zip(encode_text(maker.teacher, some), text_features(maker.clip, some), strict=True), strict=True))


@torch.inference_mode()
def sample_pairs(maker: Synthesiser, triplets: list[Triplet], drawn: list[Draw]) -> Made:
    """Sample and score one pair for each triplet and draw; hopeless ones are abandoned on the way if the parameters say so."""
    if not all(text in maker.texts for t in triplets for text in (t.caption.text, t.edited_caption)):
        remember_texts(maker, triplets)
    teacher, section = maker.teacher, maker.params
    schedule = _schedule(teacher, section)
    side = teacher.unet.config.sample_size
    noise = draw_noise([d.seed for d in drawn], (teacher.latent_channels, side, side), section.steps).to(teacher.device)
    picks = torch.arange(len(drawn))
    state = begin(schedule, _twice(noise[0]))
    stop = round(section.steps * section.abandon_at)
    if 0 < stop < section.steps:
        state = advance(_predictor(maker, triplets, drawn), schedule, _twice(noise), state, until=stop)
        picks = _promising(maker, triplets, _images(teacher, state.clean_BCHW))
        state = state.rows(torch.cat([picks, picks + len(drawn)]))
        triplets, drawn = ([x[i] for i in picks.tolist()] for x in (triplets, drawn))
    if not drawn:
        empty = torch.zeros(0, 3, teacher.image_size, teacher.image_size)
        return Made(empty, empty, [], (empty, empty), [])
    predict = _predictor(maker, triplets, drawn)
    state = advance(predict, schedule, _twice(noise[:, picks]), state, until=section.steps)
    before, after = _images(teacher, state.clean_BCHW)
    return Made(before, after, *score(maker, triplets, before, after), picks.tolist())


def score(
    maker: Synthesiser, triplets: list[Triplet], before_BCHW: Tensor, after_BCHW: Tensor
) -> tuple[list[Similar], tuple[Tensor, Tensor]]:
    """The four similarities of pairs whose texts are remembered, and CLIP's features of the images."""
    features = image_features(maker.clip, before_BCHW), image_features(maker.clip, after_BCHW)
    texts = [
        torch.stack([maker.texts[x][1] for x in some])
        for some in ([t.caption.text for t in triplets], [t.edited_caption for t in triplets])
    ]
    return similar(similarities(*features, texts[0], texts[1])), features


def similar(scores: Similarities) -> list[Similar]:
    """Similarities as one record a pair."""
    columns = (scores.caption_0, scores.caption_1, scores.image, scores.direction)
    return [Similar(*row) for row in torch.stack(columns, dim=1).double().tolist()]


def _promising(maker: Synthesiser, triplets: list[Triplet], images: tuple[Tensor, Tensor]) -> Tensor:
    """Numbers of the pairs whose predicted images miss no threshold by more than the margin."""
    found, _ = score(maker, triplets, *images)
    margin = maker.params.abandon_margin
    reasons = [reject_reason(s, maker.thresholds, t.edit_type, margin=margin) for s, t in zip(found, triplets, strict=True)]
    return torch.tensor([i for i, reason in enumerate(reasons) if reason is None], dtype=torch.long)


def _predictor(maker: Synthesiser, triplets: list[Triplet], drawn: list[Draw]) -> Predict:
    """The guided prediction for these pairs, which sets the plan of each step before it."""
    teacher, count, steps = maker.teacher, len(drawn), maker.params.steps
    texts = torch.stack([maker.texts[x][0] for x in [t.caption.text for t in triplets] + [t.edited_caption for t in triplets]])
    context = torch.cat([maker.negative_1LD.expand(2 * count, -1, -1), texts])
    guidance = torch.tensor([d.guidance for d in drawn] * 2, device=teacher.device).view(-1, 1, 1, 1)
    words = _words(teacher, triplets) if maker.params.method in ("cross_attention", "both") else None

    def predict(x: Tensor, timestep: Tensor, i: int) -> Tensor:
        maker.steering.plan = plan_step([d.p2p > i / (steps - 1) for d in drawn], words, teacher.device)
        return run_guided(teacher, x, timestep, context, guidance)

    return predict


def _words(teacher: Diffusion, triplets: list[Triplet]) -> tuple[Tensor, Tensor]:
    length = teacher.text_encoder.config.max_position_embeddings
    tokens = [
        teacher.tokenizer(x, padding="max_length", truncation=True, max_length=length).input_ids
        for x in ([t.caption.text for t in triplets], [t.edited_caption for t in triplets])
    ]
    aligned = [align_words(source, target) for source, target in zip(*tokens, strict=True)]
    return torch.stack([a[0] for a in aligned]), torch.stack([a[1] for a in aligned])


def _images(teacher: Diffusion, latents_BCHW: Tensor) -> tuple[Tensor, Tensor]:
    """Source and target images at 8 bits."""
    before, after = decode_latents(teacher, latents_BCHW).mul(255).round().div(255).chunk(2)
    return before, after


def _twice(noise: Tensor) -> Tensor:
    """Both images of a pair start from, and are stirred by, the same noise."""
    return torch.cat([noise, noise], dim=noise.ndim - 4)


def _schedule(teacher: Diffusion, section: PairsParams) -> Schedule:
    return make_schedule(teacher.alphas_cumprod, steps=section.steps, prediction=teacher.prediction, solver=section.solver)
