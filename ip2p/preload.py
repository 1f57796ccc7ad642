"""The libraries that models are loaded with, read by importing this, for the process that others are forked from."""

import gc

from ip2p.startup import start_quickly
from ip2p.torchvision_cpu import declare_operators

start_quickly()
declare_operators()
import open_clip  # noqa: E402, F401
from diffusers import AutoencoderKL, DDIMScheduler, UNet2DConditionModel  # noqa: E402, F401
from transformers import CLIPTextModel, CLIPTokenizer  # noqa: E402, F401

gc.freeze()  # memory that forked processes share stays shared
