"""What makes a process start quickly: the garbage collector kept away from the libraries, and a process that has read them to fork from."""

from __future__ import annotations

import atexit
import gc
from multiprocessing import get_all_start_methods, get_context
from multiprocessing.context import BaseContext


def start_quickly() -> None:
    """Call before the libraries are imported: their half a million objects are not looked through time and again, nor at the end.

    Of the six seconds that an empty command with torch and diffusers takes, these are two.
    """
    gc.set_threshold(100_000, 50, 50)
    atexit.register(gc.freeze)


def processes() -> BaseContext:
    """How processes are started here: forked from one that has read the libraries, or, where a GPU must not be forked, from nothing."""
    import torch

    if torch.cuda.is_available() or "forkserver" not in get_all_start_methods():
        return get_context("spawn")
    context = get_context("forkserver")
    context.set_forkserver_preload(["ip2p.preload"])
    return context
