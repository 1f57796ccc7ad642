"""What makes a process start quickly: the garbage collector kept away from the libraries, and a process that has read them to fork from."""

from __future__ import annotations

import atexit
import gc
import sys
from multiprocessing import forkserver, get_context
from multiprocessing.context import BaseContext


def start_quickly() -> None:
    """Call before the libraries are imported: their half a million objects are not looked through time and again, nor at the end.

    Of the six seconds that an empty command with torch and diffusers takes, these are two.
    """
    gc.set_threshold(100_000, 50, 50)
    atexit.register(gc.freeze)


def live_long() -> None:
    """Call in a process that serves: what a request leaves behind is collected again as usual, the libraries' objects never."""
    gc.collect()
    gc.freeze()
    gc.set_threshold(700, 10, 10)


def expect_processes() -> None:
    """Start the process that others are forked from, which reads the libraries (five seconds) while this one does its own work."""
    if processes().get_start_method() == "forkserver":
        forkserver.ensure_running()


def processes() -> BaseContext:
    """How processes are started here: forked from one that has read the libraries; or from nothing, where what they hold must not be
    forked: a GPU, the frameworks of macOS."""
    import torch

    if sys.platform != "linux" or torch.cuda.is_available():
        return get_context("spawn")
    context = get_context("forkserver")
    context.set_forkserver_preload(["ip2p.preload"])
    return context
