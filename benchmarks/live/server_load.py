"""Latency of `leadline serve` at a share of its own measured capacity, joined runs against single ones, and memory.

Run: python benchmarks/live/server_load.py [REF] [--runtime NAME] [--load 0.8] [--requests 600]
         [--memory-requests 10000]

The server runs as a process of its own, as users start it; the client shares the machine with it. Capacity is what
some clients get that ask without pause. Then requests arrive by the clock, whether earlier ones were answered or not,
at 80 % of it: evenly, as frames of a camera do, and at random (Poisson). Latency counts from the time when a request
should have been sent, so that a server that stalls cannot hide it. For memory, 10,000 requests are sent without pause
and the server's resident memory is read from its own metrics.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import io
import random
import re
import signal
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Iterator
from dataclasses import dataclass

import numpy as np
from PIL import Image

from leadline.data.rendered import render
from leadline.evaluation.machine import this_machine

HEIGHT, WIDTH = 480, 640
CLIENTS = 4
PICTURES = 8


@dataclass
class Latency:
    """Milliseconds of answered requests, and how many were refused."""

    answered: np.ndarray
    refused: int

    def row(self) -> str:
        """Cells of a Markdown table."""
        p50, p95, p99 = np.percentile(self.answered, (50, 95, 99))
        return f"{len(self.answered)} | {p50:.1f} | {p95:.1f} | {p99:.1f} | {p99 / p50:.2f} | {self.refused}"


class Client:
    """HTTP over kept connections, with as little work of its own as can be."""

    def __init__(self, port: int, pictures: list[bytes], answer: str) -> None:
        self.port = port
        self.idle: list[tuple[asyncio.StreamReader, asyncio.StreamWriter]] = []
        head = f"POST /v1/depth?format={answer} HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Type: image/jpeg\r\n"
        self.requests = [f"{head}Content-Length: {len(data)}\r\n\r\n".encode() + data for data in pictures]

    @contextlib.asynccontextmanager
    async def connection(self) -> AsyncIterator[tuple[asyncio.StreamReader, asyncio.StreamWriter]]:
        """One that nobody uses."""
        while self.idle and self.idle[-1][0].at_eof():  # the server ends what is idle for long
            self.idle.pop()[1].close()
        pair = self.idle.pop() if self.idle else await asyncio.open_connection("127.0.0.1", self.port)
        yield pair
        self.idle.append(pair)

    async def ask(self, number: int) -> int:
        """Send a picture; the status of the answer, once all of it is here."""
        async with self.connection() as (reader, writer):
            writer.write(self.requests[number % len(self.requests)])
            head = await reader.readuntil(b"\r\n\r\n")
            length = re.search(rb"content-length: (\d+)", head, re.IGNORECASE)
            assert length is not None
            await reader.readexactly(int(length[1]))
            return int(head.split()[1])

    async def close(self) -> None:
        """End every connection."""
        for _, writer in self.idle:
            writer.close()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("ref", nargs="?", default="leadline-s")
    parser.add_argument("--runtime", default="openvino")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--load", type=float, default=0.8)
    parser.add_argument("--requests", type=int, default=600, help="per row")
    parser.add_argument("--windows", default="0,5", help="milliseconds of batching windows, each a server of its own")
    parser.add_argument("--format", default="png16")
    parser.add_argument("--memory-requests", type=int, default=0)
    options = parser.parse_args()
    pictures = jpegs()
    print(f"{options.ref}, {options.runtime}, {options.threads} thread(s), {HEIGHT} x {WIDTH} JPEG -> {options.format}")
    print(f"{this_machine()}\n")
    print("| window, ms | capacity, /s | arrivals | n | p50, ms | p95 | p99 | p99 / p50 | refused |")
    print("|---|---|---|---|---|---|---|---|---|", flush=True)
    for window in options.windows.split(","):
        with server(options, float(window)) as port:
            asyncio.run(rows(port, pictures, options, window))
    if options.memory_requests:
        with server(options, 0) as port:
            asyncio.run(memory(port, pictures, options))


async def rows(port: int, pictures: list[bytes], options: argparse.Namespace, window: str) -> None:
    client = Client(port, pictures, options.format)
    await saturate(client, 40)  # warms up
    capacity = await saturate(client, options.requests // 2)
    for arrivals in ("even", "random"):
        result = await arriving(client, options.load * capacity, options.requests, arrivals)
        print(f"| {window} | {capacity:.1f} | {arrivals} | {result.row()} |", flush=True)
    await client.close()


async def saturate(client: Client, count: int) -> float:
    """Requests a second of clients that ask without pause."""
    numbers = iter(range(count))

    async def one() -> None:
        for number in numbers:
            assert await client.ask(number) == 200

    begun = time.perf_counter()
    await asyncio.gather(*(one() for _ in range(CLIENTS)))
    return count / (time.perf_counter() - begun)


async def arriving(client: Client, rate: float, count: int, arrivals: str) -> Latency:
    """Requests by the clock."""
    chance = random.Random(0)
    gaps = [1 / rate if arrivals == "even" else chance.expovariate(rate) for _ in range(count)]
    times, statuses = np.zeros(count), np.zeros(count, int)

    async def one(number: int, due: float) -> None:
        statuses[number] = await client.ask(number)
        times[number] = 1e3 * (time.perf_counter() - due)

    due, tasks = time.perf_counter(), []
    for number, gap in enumerate(gaps):
        due += gap
        await asyncio.sleep(max(0.0, due - time.perf_counter()))
        tasks.append(asyncio.create_task(one(number, due)))
    await asyncio.gather(*tasks)
    answered = statuses == 200
    return Latency(times[answered], int((~answered).sum()))


async def memory(port: int, pictures: list[bytes], options: argparse.Namespace) -> None:
    """Resident memory over many requests."""
    client = Client(port, pictures, options.format)
    step = max(1, options.memory_requests // 10)
    print("\n| requests | resident memory, MiB |\n|---|---|")
    for done in range(0, options.memory_requests + 1, step):
        if done:
            await saturate(client, step)
        print(f"| {done} | {await resident(port):.1f} |", flush=True)
    await client.close()


async def resident(port: int) -> float:
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    writer.write(b"GET /metrics HTTP/1.1\r\nHost: 127.0.0.1\r\nConnection: close\r\n\r\n")
    text = (await reader.read()).decode()
    writer.close()
    found = re.search(r"^process_resident_memory_bytes ([\d.e+]+)", text, re.MULTILINE)
    assert found is not None
    return float(found[1]) / 2**20


@contextlib.contextmanager
def server(options: argparse.Namespace, window: float) -> Iterator[int]:
    command = [sys.executable, "-m", "leadline", "serve", options.ref, "--port", "0", "--queue", "64"]
    command += ["--runtime", options.runtime, "--threads", str(options.threads), "--batch-window", str(window)]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    try:
        for line in process.stdout:
            if found := re.search(r"http://127.0.0.1:(\d+)/", line):
                break
        else:
            raise SystemExit("the server did not start")
        yield int(found[1])
    finally:
        process.send_signal(signal.SIGINT)
        process.wait(30)


def jpegs() -> list[bytes]:
    found = []
    for seed in range(PICTURES):
        buffer = io.BytesIO()
        picture = render(seed, height=HEIGHT // 2, width=WIDTH // 2).image
        Image.fromarray(picture).resize((WIDTH, HEIGHT)).save(buffer, "JPEG", quality=90)
        found.append(buffer.getvalue())
    return found


if __name__ == "__main__":
    main()
