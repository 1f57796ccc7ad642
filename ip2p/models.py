"""Load a text-to-image teacher or an editor from a folder or the Hub: one way for the world and for SD 1.5.

A name is `world` (the embedded models; `world-128`: teacher and editor at 128 pixels, not 96), a local folder written as a path (`./vae`,
`/models/sd15`), or a Hub id, which may be pinned to a commit (`owner/name@commit`). Weights are read from safetensors only.
"""

from __future__ import annotations

import re
import warnings
from functools import lru_cache
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError

from ip2p.diffusion import Diffusion
from ip2p.errors import ModelError, first_line
from ip2p.params import ModelsParams
from ip2p.records import CAPTIONS, RECORD, TRAINED
from ip2p.store import digest, fingerprint
from ip2p.torchvision_cpu import declare_operators

EMBEDDED = Path(__file__).parent / "world" / "weights"
_LARGE, _LARGE_SIDE = "world-128", 128
"""The embedded teacher and editor by the same weights on larger pictures, whose side is in pixels."""
_WORLD = ("world", _LARGE)
_SHIPPED = str(EMBEDDED / "editor")
"""A UNet alone, and what is told of it: its other parts are the embedded teacher's."""


def resolve_device(name: str) -> torch.device:
    """The device that `auto` or a torch device name means here. Raises `ModelError` if it is not to be had."""
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(name)
    except RuntimeError as error:
        raise ModelError(f"models.device: {name!r} is no device; write `auto`, `cpu` or `cuda`") from error
    if device.type not in ("cpu", "cuda"):
        raise ModelError(f"models.device: {name} is not supported; write `auto`, `cpu` or `cuda`")
    if device.type == "cuda" and (not torch.cuda.is_available() or (device.index or 0) >= torch.cuda.device_count()):
        raise ModelError(f"models.device: {name} is not available here; set it to `auto` or `cpu`")
    if device.index is not None and device.type == "cuda":
        torch.cuda.set_device(device)  # what records and measures looks at the current one
    return device


def resolve_dtype(name: str, device: torch.device) -> torch.dtype:
    """The arithmetic that a name means on a device: `auto` is bfloat16 where the hardware has it, else float32."""
    if name != "auto":
        named: torch.dtype = getattr(torch, name)
        return named
    cuda = device.type == "cuda"
    native = torch.cuda.is_bf16_supported(including_emulation=False) if cuda else torch.cpu._is_avx512_bf16_supported()
    return torch.bfloat16 if native else torch.float32


def placement(models: ModelsParams) -> tuple[torch.device, torch.dtype]:
    """The device and the arithmetic that the parameters say."""
    device = resolve_device(models.device)
    return device, resolve_dtype(models.dtype, device)


def load_diffusion(
    name: str,
    *,
    device: torch.device,
    dtype: torch.dtype = torch.float32,
    kind: str = "teacher",
    subject: str = "models.teacher",
    compiled: bool = False,
    exact: bool = False,
) -> Diffusion:
    """Load a diffusers folder (or Hub id) for arithmetic in `dtype`; with `exact`, weights that are to be trained on stay float32.

    Raises `ModelError` naming `subject` and what is missing.
    """
    declare_operators()
    from diffusers import AutoencoderKL, DDIMScheduler, UNet2DConditionModel
    from transformers import CLIPTextModel, CLIPTextModelWithProjection, CLIPTokenizer
    from transformers.utils import logging

    logging.disable_progress_bar()
    warnings.filterwarnings("ignore", message=".*local_dir_use_symlinks", category=UserWarning)  # of diffusers' own call
    source = model_source(name, kind=kind, subject=subject)
    parts: dict[str, Any] = {}
    weights = {"unet": UNet2DConditionModel, "vae": AutoencoderKL, "text_encoder": CLIPTextModel}
    for part, load in weights.items():
        held = torch.float32 if exact or part == "text_encoder" else dtype
        parts[part] = _part(load, source, part, subject, dtype=held, use_safetensors=True)
    if parts["unet"].config.addition_embed_type == "text_time":
        options = {"dtype": torch.float32, "use_safetensors": True}
        parts["text_encoder_2"] = _part(CLIPTextModelWithProjection, source, "text_encoder_2", subject, **options)
    for model in parts.values():
        model.to(device).eval().requires_grad_(False)
    if name == _LARGE:
        parts["unet"].register_to_config(sample_size=_LARGE_SIDE // 8)
    if "text_encoder_2" in parts:
        parts["zero_empty"] = _index(source).get("force_zeros_for_empty_prompt", True)  # the default of diffusers' pipelines
        parts["tokenizer_2"] = _tokenizer(CLIPTokenizer, source, "tokenizer_2", subject, parts["text_encoder_2"])
    _lay_out(parts["unet"], parts["vae"], cpu=device.type == "cpu", compiled=compiled)
    parts["tokenizer"] = _tokenizer(CLIPTokenizer, source, "tokenizer", subject, parts["text_encoder"])
    written = _part(DDIMScheduler, source, "scheduler", subject).config
    unsaid = {"clip_sample": False, "set_alpha_to_one": False}  # DDIM's own defaults are none that a latent model was trained with
    own = {k: v for k, v in unsaid.items() if k in written.get("_use_default_values", ())}
    parts["scheduler"] = DDIMScheduler.from_config(written, **own)
    return Diffusion(**parts, device=device, dtype=dtype)


def _lay_out(unet: Any, vae: Any, *, cpu: bool, compiled: bool) -> None:
    """Lay the weights as the device reads them best, and compile if that is wanted."""
    for module in (vae, unet):  # on a GPU group norm has no kernel for channels_last: uncompiled, each would copy there and back
        module.to(memory_format=torch.channels_last if cpu or compiled else torch.contiguous_format)
    if compiled and cpu:
        unet.compile(dynamic=False, options={"freezing": True})  # weights packed once for the operators that read them
    elif compiled:
        for module in (unet, vae.encoder, vae.decoder):
            module.compile()


def model_source(name: str, *, kind: str, subject: str) -> str:
    """Folder or Hub id that a name stands for. Raises `ModelError` if a local folder is missing."""
    if name == _LARGE and kind not in ("teacher", "editor"):
        raise ModelError(f"{subject}: {name} is a teacher or an editor; the embedded {kind} is of 96 pixels: write `world`")
    if name in _WORLD:
        name = str(EMBEDDED / kind)
    if not is_path(name):
        return name
    path = Path(name).expanduser()
    if not path.is_dir():
        raise ModelError(f"{subject}: no folder {name}; give an existing folder, a Hub id, or `world`")
    return str(path.absolute())  # a path still, whatever its name


def pinned(source: str) -> dict[str, str]:
    """A folder, or a Hub id and the commit that it is pinned to, as `from_pretrained` takes them."""
    name, _, commit = (source, "", "") if is_path(source) else source.partition("@")
    return {"pretrained_model_name_or_path": name} | ({"revision": commit} if commit else {})


def editor_named(name: str) -> Path | str:
    """The editor that a person names: a folder here; or, as they are, `world` and `world-128` (the embedded one) and a Hub id."""
    on_hub = re.fullmatch(r"[\w-][\w.-]*/[\w.-]+(@[\w.-]+)?", name) and not Path(name).is_dir() and name != TRAINED
    return name if name in _WORLD or on_hub else Path(name).expanduser()


def editor_folder(named: Path | str) -> Path | None:
    """The folder here that tells what an editor was trained on, of one on the Hub as far as it tells it; None if it does not."""
    if named in _WORLD:
        return EMBEDDED / "editor"
    if isinstance(named, Path):
        return named
    from huggingface_hub import hf_hub_download
    from huggingface_hub.errors import EntryNotFoundError, HfHubHTTPError, LocalEntryNotFoundError

    name, _, commit = named.partition("@")
    folder = None
    for told in (RECORD, CAPTIONS):
        try:
            folder = Path(hf_hub_download(name, told, revision=commit or None)).parent
        except LocalEntryNotFoundError:
            if told == CAPTIONS:
                print(f"{named}: what it was trained on cannot be had offline, and is not kept out of what it is judged by", flush=True)
        except (EntryNotFoundError, HfHubHTTPError):  # it tells nothing
            pass
    return folder


def model_label(name: str, kind: str = "teacher") -> str:
    """A model's name for records that leave this machine: of a local folder its last part alone."""
    if name in _WORLD and kind == "editor":
        return f"{name}/editor"
    return Path(name).name if is_path(name) else name


@lru_cache(maxsize=8)
def model_digest(name: str, kind: str) -> str:
    """What identifies a model in a fingerprint: the bytes of a local folder, or the name of a remote one and the commit it stands at."""
    source = model_source(name, kind=kind, subject=f"models.{kind}")
    if name == _LARGE:
        return fingerprint(model_digest("world", kind), _LARGE_SIDE)
    if source == _SHIPPED:
        return fingerprint(digest(Path(source) / "unet"), model_digest("world", "teacher"))
    return digest(Path(source)) if Path(source).is_dir() else fingerprint(_at_commit(source))


def _at_commit(source: str) -> str:
    """A Hub id with the commit that it stands at now; as it is where none can be told."""
    if "@" in source:
        return source
    from huggingface_hub import hf_hub_download
    from huggingface_hub.errors import EntryNotFoundError, HfHubHTTPError, HFValidationError, LocalEntryNotFoundError

    for index in ("model_index.json", "config.json"):  # of diffusers, of transformers
        try:
            return f"{source}@{Path(hf_hub_download(source, index)).parent.name}"  # in the cache, at snapshots/COMMIT
        except (LocalEntryNotFoundError, EntryNotFoundError, HfHubHTTPError, HFValidationError):
            continue
    return source


def is_path(name: str) -> bool:
    """Whether a name is written as a path."""
    return name.startswith((".", "/", "~"))


def _part(load: Any, source: str, part: str, subject: str, **options: Any) -> Any:
    if source == _SHIPPED and part != "unet":
        source = str(EMBEDDED / "teacher")
    if is_path(source) and not (Path(source) / part).is_dir():
        raise ModelError(f"{subject}: {source} has no `{part}` folder; give a diffusers text-to-image folder")
    weights = "use_safetensors" in options
    try:
        loaded = load.from_pretrained(**pinned(source), subfolder=part, **options, **({"output_loading_info": True} if weights else {}))
    except (OSError, ValueError, TypeError, RuntimeError, KeyError, SafetensorError) as error:  # NotImplementedError: weights are missing
        raise ModelError(f"{subject}: {source}/{part} cannot be loaded: {_not_here(source, part) or first_line(error)}") from error
    if not weights:
        return loaded
    model, info = loaded
    if missing := sorted(k for k in info["missing_keys"] if not k.endswith("position_ids")):
        named = f"{missing[0]}{f' and {len(missing) - 1} more' if len(missing) > 1 else ''}"
        raise ModelError(f"{subject}: {source}/{part} lacks the weights {named}; bring the whole folder")
    return model


def _not_here(source: str, part: str) -> str:
    """What a Hub id whose files are not on this machine may be about."""
    from huggingface_hub import try_to_load_from_cache

    name, _, commit = source.partition("@")
    if is_path(source) or isinstance(try_to_load_from_cache(name, f"{part}/config.json", revision=commit or None), str):
        return ""
    if Path(Path(name).parts[0]).is_dir():
        return f"no folder {name} is here, nor on the Hub a model of that name"
    return "it is not on this machine, and the Hub does not give it; is there a network, and HF_HUB_OFFLINE unset? Else give a folder, ./…"


def _index(source: str) -> dict[str, Any]:
    """The folder's model_index.json; nothing if it has none."""
    from diffusers import DiffusionPipeline

    try:
        found: dict[str, Any] = DiffusionPipeline.load_config(**pinned(source))
    except OSError:
        return {}
    return found


def _tokenizer(load: Any, source: str, part: str, subject: str, encoder: Any) -> Any:
    """A tokenizer. Raises `ModelError` if it has lost its words, which its reader would not notice."""
    tokenizer, words = _part(load, source, part, subject), int(encoder.config.vocab_size)
    if 2 * len(tokenizer) < words:
        raise ModelError(f"{subject}: {source}/{part} knows {len(tokenizer)} words, its text encoder {words}; bring the whole folder")
    return tokenizer
