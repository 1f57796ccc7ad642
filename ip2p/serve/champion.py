"""Which editor is served: the registry's champion, followed as it changes, until there is one the embedded editor; or one folder.

A new champion is loaded and has made one edit before it takes over; if it cannot, the old one goes on serving. Other versions
are loaded on request, to be compared, and the latest few are kept.
"""

from __future__ import annotations

import gc
import logging
import threading
import time
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any
from weakref import WeakValueDictionary

import torch
from PIL import Image

from ip2p.errors import ModelError
from ip2p.graphs import undisturbed
from ip2p.model.edit import edit_pictures, open_editor
from ip2p.model.guidance import EditOptions, EditRequest
from ip2p.models import editor_named, model_digest
from ip2p.params import Params
from ip2p.release.registry import (
    EditorVersion,
    champion_and_run,
    fetch_version,
    forget_unfinished,
    forget_version,
    forget_versions,
    version_numbers,
)
from ip2p.release.version import options_of, settings_of
from ip2p.serve import metrics
from ip2p.serve.jobs import Served
from ip2p.store import digest, read_json, write_json

log = logging.getLogger("ip2p.serve")
FOLDER, FALLBACK = "folder", "embedded"
"""Names of the versions that no registry has: `serve.editor` and `serve.fallback`."""
_LAST = "last.json"
"""Beside the versions on disk: which of them was served last."""
_KEPT = 2
"""Most versions loaded beside the champion, held by jobs or kept for the next."""
_AGAIN, _LATEST = 60.0, 86_400.0
"""Seconds until a version that was refused is tried again: at first, and at most; what refused it may have been the machine's fault."""


class LoadingError(Exception):
    """A version cannot be loaded now; later it can."""


class Champion:
    """Holds the served version; `start` follows the registry from a thread of its own."""

    def __init__(self, params: Params, *, work: Path = Path("work/serve/versions")) -> None:
        self._params, self._work = params, work
        self._served: Served | None = None
        self._run: str | None = None
        """The registry's run that made the champion; None: told by no registry yet."""
        self._before: str | None = None
        self._refused: tuple[str, float, float] | None = None
        """The version refused last, when it is tried again (monotonic), and the wait that it will be if it is refused then."""
        self._orphaned = False
        """Whether it was said that the registry has no champion any more."""
        self._listed: dict[str, tuple[str, ...]] = {}
        self._others: OrderedDict[str, Served] = OrderedDict()
        self._alive: WeakValueDictionary[str, Served] = WeakValueDictionary()
        self._fetched: dict[str, EditorVersion] = {}
        self._loading = threading.Lock()
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._follow, name="champion", daemon=True)

    @property
    def served(self) -> Served | None:
        """What is served now; None while there is nothing to serve."""
        return self._served

    def start(self) -> None:
        """Load the champion and follow the registry."""
        forget_unfinished(self._work)
        self._thread.start()

    def stop(self) -> None:
        """Follow no longer."""
        self._stop.set()

    def versions(self) -> dict[str, tuple[str, ...]]:
        """Versions that may be asked for, newest first, with their aliases, as the registry last told them; the fallback is the last."""
        section = self._params.serve
        if section.editor is not None:
            return {FOLDER: ("champion",)} if self._served else {}
        return self._listed | ({FALLBACK: ()} if section.fallback else {})

    def version(self, number: str) -> Served:
        """A version by its number, loaded if it must be. Raises `ModelError` if it cannot be had, `LoadingError` if it is not the time."""
        served = self._served
        if served is not None and served.version == number:
            return served
        if number not in self.versions():
            raise ModelError(f"version {number}: not registered")
        if not self._loading.acquire(blocking=False):  # requests do not queue up for a load
            raise LoadingError("another version is being loaded; come again later")
        try:
            return self._other(number)
        except (ModelError, LoadingError):
            raise
        except Exception as error:
            log.exception("version not loaded", extra={"version": number})
            raise LoadingError(f"version {number}: cannot be loaded now; come again later") from error
        finally:
            self._loading.release()

    def _other(self, number: str) -> Served:
        """A version beside the champion. Raises `LoadingError` while jobs hold as many others as may be loaded."""
        found = self._alive.get(number)  # kept, or held by jobs
        if found is None:
            while len(self._others) >= _KEPT:
                self._others.popitem(last=False)
            if len(self._alive) >= _KEPT:
                raise LoadingError(f"edits by versions {', '.join(sorted(self._alive))} are under way; come again later")
            found = self._load(number)
            self._alive[number] = found
        self._others[number] = found
        self._others.move_to_end(number)
        self._make_room()
        return found

    def look(self) -> None:
        """Ask the registry once, and take over its champion if it is another one."""
        number: str | None = FOLDER
        run: str | None = None
        if self._params.serve.editor is None:
            try:
                (number, run), self._listed = champion_and_run(self._params), version_numbers(self._params)
            except Exception:
                self._serve_last()
                raise
            number = number or self._without_champion()
        same = self._served is not None and self._served.version == number
        if number is None or (same and run == self._run) or self._is_refused(number):
            return
        try:
            with self._loading:
                if same:  # of another registry: what goes by its numbers here is of the one before
                    for known in (self._others, self._alive, self._fetched):
                        known.clear()
                self._others.pop(number, None)
                served = self._alive.pop(number, None) or self._load_alone(number)  # no longer one of the others
        except ModelError:  # it is no good, and may stay so: the old one goes on
            log.exception("champion refused", extra={"version": number, "serving": self._served and self._served.version})
            metrics.SWAPS.labels("refused").inc()
            self._refuse(number)
            self._serve_last()
            return
        except Exception:
            metrics.SWAPS.labels("failed").inc()
            self._serve_last()
            self._wait_for(number, first=self._params.serve.poll_seconds, most=_AGAIN)
            raise
        log.info("champion", extra={"version": number, "before": self._served and self._served.version})
        metrics.SWAPS.labels("taken").inc()
        self._before = self._served.version if self._served else None
        self._served, self._run, self._refused, self._orphaned = served, run, None, False
        fetched = self._fetched.get(number)
        kept = {} if fetched is None else {"folder": str(fetched.folder), "defaults": fetched.defaults, "run": run}
        write_json(self._work / _LAST, {"version": number} | kept)
        with self._loading:
            self._make_room()

    def _is_refused(self, number: str) -> bool:
        return self._refused is not None and self._refused[0] == number and time.monotonic() < self._refused[1]

    def _without_champion(self) -> str | None:
        """What to serve of a registry without a champion: the fallback until there is one, then the last one, whatever became of it."""
        if self._served is None or self._served.version == FALLBACK:
            return FALLBACK if self._params.serve.fallback else None
        if not self._orphaned:
            log.warning("the registry has no champion any more", extra={"serving": self._served.version})
        self._orphaned = True
        return None

    def _load_alone(self, number: str) -> Served:
        """Load a version; where memory does not suffice, once more without those that are only compared."""
        try:
            return self._load(number)
        except (RuntimeError, MemoryError):  # torch's, of a GPU or a CPU
            if not self._others:
                raise
            self._others.clear()
            gc.collect()
            if torch.cuda.is_available():
                torch.cuda.empty_cache()
            return self._load(number)

    def _wait_for(self, number: str, *, first: float, most: float) -> None:
        """Leave a version be for a while, longer each time."""
        wait = min(most, self._refused[2]) if self._refused is not None and self._refused[0] == number else first
        self._refused = number, time.monotonic() + wait, 2 * wait

    def _refuse(self, number: str) -> None:
        """Leave a version be, and fetch it anew then."""
        self._wait_for(number, first=_AGAIN, most=_LATEST)
        self._fetched.pop(number, None)
        forget_version(self._params, number, self._work)

    def _make_room(self) -> None:
        """Keep on disk only the versions in use, and the champion before this one, for a rollback."""
        used = {self._served and self._served.version, self._before, *self._alive, *self._others}
        self._fetched = {n: v for n, v in self._fetched.items() if n in used}
        forget_versions(self._work, [v.folder for v in self._fetched.values()])

    def _serve_last(self) -> None:
        """After a start without the champion: what was served before, if it is on disk still and any good; else the fallback.

        Where something is served already, or one editor was asked for by name, nothing else takes its place.
        """
        if self._served is not None or self._params.serve.editor is not None:
            return
        path = self._work / _LAST
        last = read_json(path) if path.exists() else {}
        number = str(last.get("version", FALLBACK))
        numbers = [FALLBACK] if self._params.serve.fallback else []
        if "folder" in last and Path(last["folder"]).is_dir() and not self._is_refused(number):
            self._fetched[number] = EditorVersion(self._params.register_.name, number, Path(last["folder"]), last["defaults"])
            numbers.insert(0, number)
        for number in numbers:
            try:
                with self._loading:
                    self._served, self._run = self._load(number), last.get("run") if number == last.get("version") else None
            except ModelError:
                log.exception("not served", extra={"version": number})
                continue
            log.warning("started without the champion", extra={"serving": number})
            return

    def _follow(self) -> None:
        trouble = None
        while not self._stop.is_set():
            try:
                self.look()
                trouble = None
            except Exception as error:  # registry, storage or memory fail for now: serve what there is, try again
                kind = type(error).__name__
                log.warning("champion cannot be followed", extra={"error": kind}, exc_info=kind != trouble)  # at length once
                trouble = kind
            self._stop.wait(self._params.serve.poll_seconds)

    def _load(self, number: str) -> Served:
        settings = settings_of(self._params.evaluate)
        if number in (FOLDER, FALLBACK):
            folder: Path | str = editor_named(str(self._params.serve.editor if number == FOLDER else self._params.serve.fallback))
        else:
            version = self._fetched.get(number) or fetch_version(self._params, number, self._work)
            self._fetched[number] = version
            folder = version.folder
            settings |= version.defaults
        with undisturbed:
            editor = open_editor(folder, self._params.models)
            mark = (digest(folder) if isinstance(folder, Path) else model_digest(folder, "editor"))[:16]
            served = Served(number, mark, editor, options_of(settings), settings["text_guidance"], settings["image_guidance"])
            _try_out(served)
        return served


def _try_out(served: Served) -> None:
    """Make one edit of two steps. Raises `ModelError` if no picture comes of it."""
    editor = replace(served.editor, graphed=None)
    side = editor.image_size
    request = EditRequest("make it winter", served.text_guidance, served.image_guidance)
    seen: Callable[[Image.Image], Any] = Image.Image.getextrema
    made, *_ = edit_pictures(editor, [Image.new("RGB", (side, side), "gray")], [request], EditOptions(2))
    with torch.inference_mode():
        weights_are_numbers = all(bool(p.isfinite().all()) for p in editor.unet.parameters())
    if not weights_are_numbers or all(low == high for low, high in seen(made)):
        raise ModelError(f"version {served.version}: its weights make no picture")
