"""Start-up times: `import leadline` and `leadline --help`, each in fresh processes, beside a bare interpreter.

Run: python benchmarks/import_time.py [--runs 20]
The bars (on an idle core) are 0.2 s and 0.4 s; the whole process is timed, interpreter start included. The processor
time beside it tells a slow start from a busy machine.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import subprocess
import sys
import time

import numpy as np

COMMANDS = {
    "python": [sys.executable, "-c", "pass"],
    "import leadline": [sys.executable, "-c", "import leadline"],
    "leadline --help": [sys.executable, "-m", "leadline", "--help"],
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--runs", type=int, default=20)
    options = parser.parse_args()
    seconds: dict[str, list[float]] = {name: [] for name in COMMANDS}
    processor: dict[str, list[float]] = {name: [] for name in COMMANDS}
    for _ in range(options.runs + 1):  # alternated; the first round only fills the file cache
        for name, command in COMMANDS.items():
            start, used = time.perf_counter(), children_seconds()
            subprocess.run(command, check=True, capture_output=True)
            seconds[name].append(time.perf_counter() - start)
            processor[name].append(children_seconds() - used)
    result = {}
    for name, values in seconds.items():
        low, median, high = np.percentile(values[1:], (25, 50, 75))
        result[name] = {
            "median_s": round(median, 3),
            "q1_s": round(low, 3),
            "q3_s": round(high, 3),
            "processor_median_s": round(float(np.median(processor[name][1:])), 3),
        }
    print(json.dumps({**result, "machine": f"{platform.machine()}, {platform.platform()}"}, indent=2))


def children_seconds() -> float:
    times = os.times()
    return times.children_user + times.children_system


if __name__ == "__main__":
    main()
