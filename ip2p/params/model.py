"""Sections of the stages that make and release the model: train, evaluate, register, report, pretrain."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, ValidationInfo, field_validator, model_validator

from ip2p.params.base import Count, Positive, Section, Share
from ip2p.params.dataset import EvaluateJudgeParams


class TrainParams(Section):
    """Editor from teacher (paper §3.2, appendix A; reference: lr 1e-4, batch 1024, EMA 0.9999, 10k+ steps)."""

    steps: Count = 600
    """Optimizer steps."""
    batch: Count = 32
    """Samples a step, of all processes together."""
    sizes: tuple[Count, ...] = ()
    """Sides of the pictures trained on, pixels, several of which steps take in turns (one named twice, twice as often); none: what the
    UNet was made for, at which it edits in any case (reference: trained at 256, edits at 512)."""
    start: str | None = None
    """An editor to go on from (`world`: the one that ships, `world-128`: at 128 pixels; a diffusers folder as `./path`; a Hub id such as
    `timbrooks/instruct-pix2pix`); none: the teacher. The captions that its folder says it was trained on
    are not held out."""
    preferences: str | None = None
    """What people preferred among served edits, learned from beside the dataset: the folder of `ip2p feedback export`,
    which tells the version to write behind it (`data/preferences@VERSION`), so that other votes are another training."""
    preference_loss: Literal["better", "dpo"] = "better"
    """`better`: the edits that were preferred are learned from like any pair (reward-ranked fine-tuning, Dong et al. 2023). `dpo`: the
    editor comes nearer to them, and further from the others, than it was at the start (Diffusion-DPO, Wallace et al. 2023)."""
    preference_batch: Count = 8
    """Preferences a step; each costs as much as a sample, as four with `dpo`."""
    preference_weight: Positive = 1.0
    """Weight of their loss beside that of the dataset. Of `dpo`, whose gradient is by far the larger, about 0.02: at 0.1 a few hundred
    votes cost success (docs/world.md)."""
    preference_beta: Positive = 2500.0
    """β of `dpo`: how dear it is to leave what the editor was at the start (Wallace et al. 2023: 5000 for Stable Diffusion 1.5)."""
    lora_rank: Annotated[int, Field(ge=0, le=1024)] = 0
    """Rank of LoRA weights that are trained in place of the whole UNet; 0 trains it all."""
    optimizer: Literal["adamw", "adamw8bit", "muon"] = "adamw"
    """AdamW (the reference's), its moments in 8 bits (on GPUs: `ip2p[gpu]`), or Muon for matrices and convolutions, which learns
    more from each of a few steps (ip2p/muon.py)."""
    lr: Positive = 1e-4
    """Learning rate, between warm-up and decay."""
    weight_decay: Annotated[float, Field(ge=0)] = 0.01
    """Decoupled weight decay, of either optimizer."""
    warmup: Annotated[int, Field(ge=0)] = 0
    """Steps of linear warm-up (reference: none)."""
    decay: Share = 0.0
    """Share of the steps at the end over which the rate falls to zero (reference: none)."""
    ema: Share = 0.9999
    """EMA decay, warmed up as min(ema, (1+n)/(10+n))."""
    clip_norm: Annotated[float, Field(ge=0)] = 0.0
    """Largest norm of a step's gradient; 0 leaves it (reference)."""
    min_snr: Annotated[float, Field(ge=0)] = 0.0
    """γ of min-SNR weighting, such as 5; 0 weighs all timesteps alike (reference)."""
    prediction: Literal["epsilon", "v_prediction"] | None = None
    """What the UNet predicts; none: what its start does."""
    drop_text: Share = 0.05
    drop_both: Share = 0.05
    drop_image: Share = 0.05
    """Conditioning dropout: text only, text and image, image only (paper §3.2.1)."""
    views: Count = 2
    """Views of each pair kept as latents: the picture, then random resized crops."""
    flip: bool = True
    """Whether every other view is mirrored, unless the instruction names a side: left or right (reference: all are)."""
    cache_gb: Positive = 100.0
    """Most disk that cached latents and text embeddings may take, GB."""
    checkpoint_every: Count = 100
    """Steps between checkpoints, from which a killed training goes on."""
    keep: Count = 2
    """Checkpoints kept."""
    grid_every: Count = 200
    """Steps between grids of sample edits in MLflow."""
    log_every: Count = 10
    """Steps between figures, printed and in MLflow."""
    workers: Count = 2
    """CPU processes that share each batch; on GPUs, and over several machines, `accelerate launch` says how many."""
    accumulate: Count = 1
    """Parts in which each process works off its share of a batch, one after the other: less memory, the same step."""
    gradient_checkpointing: bool = False
    """Compute activations again in the backward pass: a third slower, a fraction of their memory."""
    ema_on_cpu: bool = False
    """Keep the moving average in the machine's memory and not in the GPU's."""
    compile: bool = False
    """Whether the UNet is compiled (`torch.compile`): minutes at the start, faster steps after, on a GPU. Training ends at once where its
    gradients are others than plain, as torch 2.13's are on a CPU."""

    @model_validator(mode="after")
    def _drops_fit(self) -> TrainParams:
        if self.drop_text + self.drop_both + self.drop_image > 1:
            raise ValueError("drop_text, drop_both and drop_image are shares of the same samples, their sum must be at most 1")
        return self


class EvaluateParams(Section):
    """Held-out editing (paper Fig. 8) and, in the world, the truth.

    Its scales, steps, solver and interval are also what a registered version carries, and what `ip2p edit` and `ip2p serve` edit with
    where nobody says otherwise.
    """

    count: Count = 88
    """Held-out edits."""
    held_out: Literal["world", "dataset"] = "world"
    """Fresh scenes of the world, whose truth is known, or the dataset's test split."""
    benchmarks: dict[Literal["magicbrush", "emu_edit", "pie_bench", "hf"], str] = {}
    """Folders of other people's benchmarks, by their layout; the editor is measured on each."""
    previous: str | None = None
    """An editor to compare with, edit by edit, such as the one that training goes on from: `world`, a folder, or a Hub id. The gate
    stays shut if that one is surely better."""
    dino: str | None = None
    """A self-supervised vision model (transformers folder or Hub id, such as `facebook/dino-vits16`); none: not measured."""
    protocol: Literal["correct", "legacy"] = "correct"
    """`legacy` feeds CLIP images in [-1, 1], as the reference does by mistake, and resized unfiltered: only to compare with its figures."""
    judge: EvaluateJudgeParams | None = None
    """A vision language model that judges the headline's edits; none: not asked."""
    steps: Annotated[int, Field(ge=2, le=1000)] = 20
    """UNet steps of an edit."""
    solver: Literal["euler_ancestral", "dpmpp_2m"] = "euler_ancestral"
    """Euler ancestral (the reference's), or DPM-Solver++(2M); edits of the world are better by the first (docs/benchmarks.md)."""
    guidance_interval: tuple[Share, Share] = (0.0, 1.0)
    """Shares of the steps between which guidance holds; outside both scales are 1, a third of the work (the reference: all)."""
    guidance_every: Count = 1
    """Steps for which guidance differences are kept; every other step takes a third of the work (the reference: 1)."""
    text_guidance: Positive = 7.5
    """Text guidance scale s_T while s_I is swept, and of the headline figures."""
    image_guidance: Positive = 1.5
    """Image guidance scale s_I while s_T is swept, and of the headline figures."""
    image_guidance_sweep: tuple[Positive, ...] = (1.0, 1.2, 1.4, 1.6, 1.8, 2.0, 2.2)
    """Values of s_I along the curve of Fig. 8."""
    text_guidance_sweep: tuple[Positive, ...] = ()
    """Values of s_T, at `image_guidance`, that the curve shows besides."""
    sdedit_strengths: tuple[Annotated[float, Field(gt=0, le=1)], ...] = (0.3, 0.5, 0.7, 0.9)
    """Shares of the noise schedule that the SDEdit baseline runs."""
    sdedit_guidance: Positive = 7.5
    """Guidance scale of the SDEdit baseline."""
    sdedit_steps: Annotated[int, Field(ge=2, le=1000)] | None = None
    """Steps of the whole schedule, of which SDEdit runs its strength's share; none: `steps`."""
    batch: Count = 16
    """Edits at once."""

    @field_validator("guidance_interval")
    @classmethod
    def _in_order(cls, interval: tuple[float, float]) -> tuple[float, float]:
        if interval[0] >= interval[1]:
            raise ValueError("the first share must be below the second, or nothing is guided")
        return interval


class RegisterParams(Section):
    """What becomes of a trained editor."""

    name: Annotated[str, Field(pattern=r"^\w[^/:'\"]*$")] = "ip2p-editor"
    """Registered model name: a letter or digit first, and no slashes, colons or quotes."""
    margin: Annotated[float, Field(ge=0)] = 0.0
    """By how much the challenger's edit score must exceed each baseline's, and at least the champion's."""
    confidence: Share = 0.8
    """Least share of paired bootstrap resamples in which it is at least that much better than the champion."""
    preserving: Share = 0.02
    """How much less than the champion it may leave the rest alone."""


class ReportParams(Section):
    """The page at the end of a run."""

    grid: Annotated[int, Field(ge=1, le=12)] = 12
    """Before/after rows shown, of the twelve that `evaluate` keeps."""


class TrackParams(Section):
    """Where runs are remembered."""

    uri: str = "sqlite:///work/mlflow.db"
    """MLflow tracking URI; MLFLOW_TRACKING_URI in the environment wins."""
    experiment: str = "ip2p"
    """MLflow experiment that all runs belong to."""


HELD_OUT = 2_048
"""Rendered scenes, the first ones, on which no embedded model is trained."""


class PretrainParams(Section):
    """Training of the embedded models (not part of a run)."""

    size: Annotated[int, Field(ge=32, multiple_of=8)] = 96
    """Picture side, pixels; latents are an eighth."""
    scenes: Annotated[int, Field(gt=HELD_OUT)] = 49_152
    """Rendered, those that are held out among them."""
    clip_steps: Count = 3_500
    """Steps of CLIP's training."""
    autoencoder_steps: Count = 8_000
    """Steps of the autoencoder's."""
    teacher_steps: Count = 10_000
    """Steps of the teacher's."""
    minutes: Positive | None = None
    """End each part's leg after so many minutes if its steps take longer (one process): for a GPU that is had for minutes."""
    rate: Positive = 2e-3
    """Learning rate of each part."""
    decay: Share = 0.3
    """Share of a leg over which the rate falls to zero."""
    clip_batch: Count = 64
    """Pictures a step of each process."""
    autoencoder_batch: Count = 16
    """Crops of `autoencoder_crop` pixels a step, shared by the processes."""
    autoencoder_crop: Annotated[int, Field(ge=16, multiple_of=8)] = 48
    """Side of the crops that the autoencoder learns from, pixels."""
    teacher_batch: Count = 64
    """Samples a step, shared by the processes."""
    teacher_sizes: tuple[Annotated[int, Field(ge=32, multiple_of=32)], ...] = ()
    """Sides of the pictures that the teacher learns to draw, pixels, `size` among them; steps take them in turns. None: `size` alone."""
    teacher_texts: bool = True
    """Whether the teacher's text encoder learns, too. Editors share it: without, those that there are stay what they are."""
    workers: Count = 2
    """CPU processes for training and for rendering."""
    compile: bool = True
    """Whether a part with half an hour or more to go tries its steps compiled (`torch.compile`; compiling takes minutes), and goes on so
    if they are quicker and learn the same."""

    @property
    def sides(self) -> tuple[int, ...]:
        """All sizes of pictures that the teacher learns."""
        return self.teacher_sizes or (self.size,)

    @field_validator("teacher_sizes")
    @classmethod
    def _with_its_own(cls, sizes: tuple[int, ...], told: ValidationInfo) -> tuple[int, ...]:
        if sizes and told.data.get("size") not in sizes:
            raise ValueError("pretrain.size must be one of them: the exported models are said to be of that size")
        return sizes
