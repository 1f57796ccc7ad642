"""The server under load: edits a second with batching against without, then ten times what it can do.

`python -m benchmarks.serve` after `make run`. First as many clients as there are places ask one after the other (throughput, latency);
then requests come at ten times that rate, whether answered or not, for `--seconds`: every answer must be 200 or 429, refusals must be
quick, memory must stay bounded. Each request is of another picture, so that the server remembers none. The server is a process of its
own; its clients share the machine with it, as here everything does.
"""

from __future__ import annotations

import argparse
import asyncio
import io
import os
import random
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from pathlib import Path

import httpx
import psutil
import yaml

from ip2p.model.edit import Remembered
from ip2p.world.render import render
from ip2p.world.scenes import sample_scene

ROOT = Path(__file__).parents[1]
QUEUE = 16
TENFOLD = 10
PICTURES = 2 * Remembered.most
INSTRUCTIONS = ("make it winter", "make it night", "make it rainy", "make it a pencil sketch", "set it in a city", "make it a mosaic")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--editor", type=Path, default=Path("models/editor"), help="editor folder (default: %(default)s)")
    parser.add_argument("--seconds", type=float, default=120, help="of the load at ten times capacity (default: %(default)s)")
    parser.add_argument("--edits", type=int, default=48, help="for throughput (default: %(default)s)")
    options = parser.parse_args()
    print("| edits under way at once | edits/s | × | median s | 95% s |\n|---|---|---|---|---|", flush=True)
    first = None
    for batch in (1, 8):
        with server(options.editor, batch) as (url, process):
            rate, times = asyncio.run(closed(url, options.edits, clients=8))
            first = first or rate
            late = sorted(times)[int(0.95 * len(times))]
            print(f"| {batch} | {rate:.2f} | {rate / first:.2f} | {statistics.median(times):.2f} | {late:.2f} |", flush=True)
            if batch == 8:
                overload(url, process, rate, options.seconds)


def overload(url: str, process: psutil.Process, rate: float, seconds: float) -> None:
    before = process.memory_info().rss
    answers = asyncio.run(opened(url, rate * TENFOLD, seconds))
    codes = Counter(code for code, _ in answers)
    refused = sorted(t for code, t in answers if code == 429)
    served = sorted(t for code, t in answers if code == 200)
    told = ", ".join(f"{n:,} × {code}" for code, n in sorted(codes.items()))
    print(f"\n{seconds:.0f} s at {rate * TENFOLD:.1f} requests a second: {told}; {codes[200] / seconds:.2f} edits/s meanwhile.")
    print(f"Refusals: median {statistics.median(refused) * 1e3:.0f} ms, 99% {refused[int(0.99 * len(refused))] * 1e3:.0f} ms. ", end="")
    print(f"Edits: median {statistics.median(served):.1f} s, 99% {served[int(0.99 * len(served))]:.1f} s. ", end="")
    print(f"Memory: {before / 2**20:.0f} MiB before, {process.memory_info().rss / 2**20:.0f} MiB after.")


@contextmanager
def server(editor: Path, batch: int) -> Iterator[tuple[str, psutil.Process]]:
    """A server process with the editor, ready."""
    with tempfile.TemporaryDirectory() as folder:
        section = {"editor": str(editor.resolve()), "batch": batch, "queue": QUEUE, "port": 0}
        params = yaml.safe_load((ROOT / "params.yaml").read_text()) | {"serve": section}
        (Path(folder) / "params.yaml").write_text(yaml.safe_dump(params))
        command = [sys.executable, "-m", "ip2p.cli", "serve"]
        environment = {**os.environ, "PYTHONPATH": str(ROOT), "HF_HUB_OFFLINE": "1"}
        with (Path(folder) / "log").open("w") as log:
            child = subprocess.Popen(command, cwd=folder, env=environment, stdout=subprocess.PIPE, stderr=log, text=True)
        url = child.stdout.readline().strip()
        try:
            for _ in range(600):
                if httpx.get(f"{url}/readyz").status_code == 200:
                    break
                time.sleep(0.1)
            yield url, psutil.Process(child.pid)
        finally:
            child.send_signal(signal.SIGTERM)
            child.wait(timeout=60)


async def ask(client: httpx.AsyncClient, number: int) -> tuple[int, float]:
    """One edit by OpenAI's door, the picture and instruction of that number: its status and seconds."""
    picture, instruction = drawn()[number % PICTURES], INSTRUCTIONS[number % len(INSTRUCTIONS)]
    began = time.monotonic()
    answer = await client.post("/v1/images/edits", files={"image": picture}, data={"prompt": instruction})
    return answer.status_code, time.monotonic() - began


async def closed(url: str, edits: int, *, clients: int) -> tuple[float, list[float]]:
    """Clients that each wait for their answer: edits a second, and each edit's seconds."""
    left, times = edits, []

    async def one(client: httpx.AsyncClient) -> None:
        nonlocal left
        while left > 0:
            left -= 1
            code, spent = await ask(client, left)
            assert code == 200, code
            times.append(spent)

    async with httpx.AsyncClient(base_url=url, timeout=120) as client:
        await ask(client, edits)
        began = time.monotonic()
        await asyncio.gather(*(one(client) for _ in range(clients)))
        return len(times) / (time.monotonic() - began), times


async def opened(url: str, rate: float, seconds: float) -> list[tuple[int, float]]:
    """Requests at a rate, answered or not."""
    tasks: list[asyncio.Task[tuple[int, float]]] = []
    drawn()
    began = time.monotonic()
    limits = httpx.Limits(max_connections=None, max_keepalive_connections=100)
    async with httpx.AsyncClient(base_url=url, timeout=120, limits=limits) as client:
        while (at := time.monotonic() - began) < seconds:
            tasks.append(asyncio.create_task(ask(client, len(tasks))))
            await asyncio.sleep(max(0, len(tasks) / rate - at))
        return await asyncio.gather(*tasks)


@cache
def drawn() -> list[bytes]:
    """Pictures of the world, 256 px: more than a server remembers."""
    pictures = []
    for number in range(PICTURES):
        buffer = io.BytesIO()
        render(sample_scene(random.Random(f"benchmark-serve/{number}")), seed=number, size=256).save(buffer, "PNG")
        pictures.append(buffer.getvalue())
    return pictures


if __name__ == "__main__":
    main()
