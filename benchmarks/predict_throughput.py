"""Throughput of `leadline predict` against the bare session, over 200 pictures of 640 x 480.

Run: python benchmarks/predict_throughput.py [--model REF] [--runs 5] [--save png16,color]
The bare session gets prepared tensors and throws its output away; the pipeline decodes JPEG, prepares, runs the same
session with the same threads, restores and writes. The two are alternated; medians and interquartile ranges printed.
"""

from __future__ import annotations

import argparse
import json
import platform
import tempfile
import time
from pathlib import Path

import numpy as np

from leadline.batch import predict_batch
from leadline.image import read_image
from leadline.predictor import Predictor, load
from leadline.saving import parse_formats
from leadline.sources import Item, find_pictures

HEIGHT, WIDTH = 480, 640


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="leadline-s-indoor")
    parser.add_argument("--runtime", default=None, help="export to this engine first")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--pictures", type=int, default=200)
    parser.add_argument("--runs", type=int, default=5)
    parser.add_argument("--save", default="png16,color")
    options = parser.parse_args()

    predictor = load(options.model, runtime=options.runtime, threads=options.threads)
    with tempfile.TemporaryDirectory() as folder:
        source, out = Path(folder) / "pictures", Path(folder) / "depth"
        write_pictures(source, options.pictures)
        items = find_pictures([str(source)], out)
        pairs = []
        for run in range(options.runs + 1):
            pair = bare(predictor, items), pipeline(predictor, items, parse_formats(options.save))
            if run:  # the first round warms up
                pairs.append(pair)
                print(f"bare {pair[0]:6.2f}/s   predict {pair[1]:6.2f}/s   ratio {pair[1] / pair[0]:.3f}", flush=True)
    bare_rate, pipeline_rate = np.array(pairs).T
    print(json.dumps({
        "model": options.model,
        "engine": predictor.session.engine,
        "threads": options.threads,
        "save": options.save,
        "pictures": len(items),
        "bare_per_s": quartiles(bare_rate),
        "predict_per_s": quartiles(pipeline_rate),
        "ratio": quartiles(pipeline_rate / bare_rate),
        "machine": f"{platform.processor() or platform.machine()}, {platform.platform()}",
    }, indent=2))  # fmt: skip


def write_pictures(folder: Path, count: int) -> None:
    """Smooth scenes with texture and noise: JPEG files of about the size of a photograph's."""
    from PIL import Image

    folder.mkdir()
    rng = np.random.default_rng(0)
    for index in range(count):
        coarse = Image.fromarray(rng.integers(0, 256, (12, 16, 3), np.uint8)).resize(
            (WIDTH, HEIGHT), Image.Resampling.BICUBIC
        )
        noisy = np.asarray(coarse) + rng.normal(0, 6, (HEIGHT, WIDTH, 1))
        Image.fromarray(np.clip(noisy, 0, 255).astype(np.uint8)).save(folder / f"{index:04}.jpg", quality=90)


def bare(predictor: Predictor, items: list[Item]) -> float:
    """Pictures a second of the session alone."""
    inputs = [predictor.contract.prepare(read_image(item.source)) for item in items[:8]]
    start = time.perf_counter()
    for index in range(len(items)):
        predictor.session.run(inputs[index % len(inputs)])
    return len(items) / (time.perf_counter() - start)


def pipeline(predictor: Predictor, items: list[Item], formats: tuple[str, ...]) -> float:
    """Pictures a second from file to file."""
    start = time.perf_counter()
    outcomes = list(predict_batch(predictor, items, formats))
    seconds = time.perf_counter() - start
    assert all(outcome.error is None for outcome in outcomes)
    return len(outcomes) / seconds


def quartiles(values: np.ndarray) -> dict[str, float]:
    low, median, high = np.percentile(values, (25, 50, 75))
    return {"median": round(float(median), 3), "q1": round(float(low), 3), "q3": round(float(high), 3)}


if __name__ == "__main__":
    main()
