"""The libraries that models are loaded with, read by importing this: five seconds that processes forked afterwards do not spend again."""

from ip2p.torchvision_cpu import declare_operators

declare_operators()
import open_clip  # noqa: E402, F401
from diffusers import AutoencoderKL, DDIMScheduler, UNet2DConditionModel  # noqa: E402, F401
from transformers import CLIPTextModel, CLIPTokenizer  # noqa: E402, F401
