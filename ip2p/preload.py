"""The libraries that models are loaded with, read by importing this, for the process that others are forked from."""

import gc
import signal
import threading

from ip2p.startup import start_quickly
from ip2p.torchvision_cpu import declare_operators

if interruptible := threading.current_thread() is threading.main_thread():
    before = signal.signal(signal.SIGINT, signal.SIG_DFL)  # a command that is interrupted meanwhile says so itself, without this traceback
start_quickly()
declare_operators()
import open_clip  # noqa: E402, F401
from diffusers import AutoencoderKL, DDIMScheduler, UNet2DConditionModel  # noqa: E402, F401
from transformers import CLIPTextModel, CLIPTokenizer  # noqa: E402, F401

if interruptible:
    signal.signal(signal.SIGINT, before)
gc.freeze()  # memory that forked processes share stays shared
