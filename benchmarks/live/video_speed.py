"""Frames a second of `leadline predict FILM` at 640 x 480 against the bare session; or its memory over a long film.

Run: python benchmarks/live/video_speed.py [--model BUNDLE] [--runs 5] [--frames 900]
     python benchmarks/live/video_speed.py --minutes 20

The film is drawn by this script (a rendered street under a moving window, H.264, with grain). The bare session gets
prepared tensors and throws its output away. The pipeline decodes, prepares, runs the same session with the same
threads, makes the values steady (or not), draws and encodes. Bare and both pipelines take turns; medians and quartiles.
For the project's figure give an INT8 bundle of leadline-s (leadline export leadline-s -r openvino -p int8-static) and
leave --threads at 1 on two cores. On a machine that does other work too, the milliseconds of CPU a frame are the figure
to trust: two cores cannot give more than 2000 / them frames a second.

With --minutes, a film of that length (25 frames a second) goes through the pipeline once; the resident memory is read
twice a second and its median over each tenth of the film printed.
"""

from __future__ import annotations

import argparse
import json
import platform
import tempfile
import threading
import time
from pathlib import Path

import av
import numpy as np
import psutil

from leadline.data.rendered import render
from leadline.live.film import FilmOptions, predict_film
from leadline.live.temporal import Smoothing
from leadline.live.view import View
from leadline.predictor import Predictor, load

HEIGHT, WIDTH, RATE = 480, 640, 25
BARE = 60  # frames a turn of the bare session


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="leadline-s")
    parser.add_argument("--runtime", default=None, help="export to this engine first")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--frames", type=int, default=900)
    parser.add_argument("--runs", type=int, default=5)
    parser.add_argument("--view", default="depth", choices=[str(view) for view in View])
    parser.add_argument("--minutes", type=float, default=0, help="memory over a film of this length")
    options = parser.parse_args()
    predictor = load(options.model, runtime=options.runtime, threads=options.threads)
    with tempfile.TemporaryDirectory() as folder, predictor:
        film = Path(folder) / "film.mp4"
        if options.minutes:
            write_film(film, round(60 * RATE * options.minutes))
            print(json.dumps(memory(predictor, film, Path(folder), options.view), indent=2))
        else:
            write_film(film, options.frames)
            compare(predictor, film, Path(folder), options)


def compare(predictor: Predictor, film: Path, folder: Path, options: argparse.Namespace) -> None:
    rates: dict[str, list[float]] = {"bare": [], "plain": [], "smoothed": []}
    costs: dict[str, list[float]] = {name: [] for name in rates}
    for run in range(options.runs + 1):
        turn = {
            "bare": bare(predictor),
            "plain": pipeline(predictor, film, folder, None, options.view),
            "smoothed": pipeline(predictor, film, folder, Smoothing(), options.view),
        }
        if run:  # the first round warms up
            for name, (rate, cost) in turn.items():
                rates[name].append(rate)
                costs[name].append(cost)
            said = (f"{name} {rate:6.2f}/s {cost:5.1f} ms" for name, (rate, cost) in turn.items())
            print("   ".join(said), flush=True)
    content = {
        "model": options.model,
        "engine": f"{predictor.session.engine} {predictor.session.precision_ran}",
        "threads": options.threads,
        "input": list(predictor.contract.size_for(HEIGHT, WIDTH, predictor.size)),
        "film": f"{HEIGHT}x{WIDTH}, {options.frames} frames",
        "view": options.view,
        "frames_per_s": {name: quartiles(values) for name, values in rates.items()},
        "cpu_ms_per_frame": {name: quartiles(values) for name, values in costs.items()},
        "of_bare": {
            name: quartiles(list(np.array(rates[name]) / np.array(rates["bare"]))) for name in ("plain", "smoothed")
        },
        "machine": f"{platform.processor() or platform.machine()}, {psutil.cpu_count()} cores, {platform.platform()}",
        "load": psutil.getloadavg()[0],
    }
    print(json.dumps(content, indent=2))


def bare(predictor: Predictor) -> tuple[float, float]:
    """Frames a second, and milliseconds of all cores together for one."""
    prepared = predictor.contract.prepare(np.full((HEIGHT, WIDTH, 3), 99, np.uint8), predictor.size)
    begin, cpu = time.perf_counter(), time.process_time()
    for _ in range(BARE):
        predictor.session.run(prepared)
    return BARE / (time.perf_counter() - begin), 1e3 * (time.process_time() - cpu) / BARE


def pipeline(
    predictor: Predictor, film: Path, folder: Path, smoothing: Smoothing | None, view: str
) -> tuple[float, float]:
    options = FilmOptions(view=View(view), smoothing=smoothing)
    begin, cpu = time.perf_counter(), time.process_time()
    result = predict_film(predictor, film, folder / "out", options)
    return result.frames / (time.perf_counter() - begin), 1e3 * (time.process_time() - cpu) / result.frames


def memory(predictor: Predictor, film: Path, folder: Path, view: str) -> dict[str, object]:
    process, ended = psutil.Process(), threading.Event()
    seen: list[float] = []

    def watch() -> None:
        while not ended.wait(0.5):
            seen.append(process.memory_info().rss / 2**20)

    watcher = threading.Thread(target=watch)
    watcher.start()
    begin = time.perf_counter()
    try:
        result = predict_film(predictor, film, folder / "out", FilmOptions(view=View(view)))
    finally:
        ended.set()
        watcher.join()
    tenths = [float(np.median(part)) for part in np.array_split(np.array(seen), 10) if part.size]
    return {
        "frames": result.frames,
        "seconds": time.perf_counter() - begin,
        "mib_of_each_tenth": [round(each, 1) for each in tenths],
        "growth_mib": round(tenths[-1] - tenths[1], 1),
    }


def write_film(path: Path, count: int) -> None:
    """A window of 640 x 480 that moves over a rendered street, with grain."""
    street = render(3, height=HEIGHT, width=2 * WIDTH, scene="street").image
    random = np.random.default_rng(0)
    grain = [random.integers(0, 12, (HEIGHT, WIDTH, 3), np.uint8) for _ in range(4)]
    with av.open(str(path), "w") as container:
        stream = container.add_stream("libx264", rate=RATE, options={"preset": "veryfast", "crf": "20"})
        stream.height, stream.width, stream.pix_fmt = HEIGHT, WIDTH, "yuv420p"
        for number in range(count):
            at = round(WIDTH / 2 * (1 - np.cos(number / 60)))
            image = (street[:, at : at + WIDTH] // 17 * 16) + grain[number % 4]
            for packet in stream.encode(av.VideoFrame.from_ndarray(image, format="rgb24")):
                container.mux(packet)
        for packet in stream.encode(None):
            container.mux(packet)


def quartiles(values: list[float]) -> dict[str, float]:
    low, middle, high = np.percentile(values, (25, 50, 75))
    return {"median": float(middle), "q25": float(low), "q75": float(high), "n": len(values)}


if __name__ == "__main__":
    main()
