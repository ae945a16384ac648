"""What the seconds before the first frame of a command are spent on, each part in fresh processes.

first_seconds.py [RUNS]: about 15 s a run on two quiet cores; medians of 3 runs.
"""

import json
import os
import subprocess
import sys
import time

from common import keep, median

PARTS = """
import json, sys, time
times = [float(sys.argv[1]), time.time()]
def part():
    times.append(time.time())
import genai_ray.cli, genai_ray.enhance
part()
cache = genai_ray.ModelCache()
part()
cache.load_model("websr-x2-l")
part()
import ray
@ray.remote(num_cpus=1)
def work():
    import genai_ray.enhance
ray.get(work.remote())
part()
cache.shutdown()
print(json.dumps([after - before for before, after in zip(times, times[1:])]))
"""
NAMES = ("python_s", "import_s", "ray_s", "model_s", "worker_s")


def main(runs: int = 3) -> None:
    measured = []
    for _ in range(runs):
        command = [sys.executable, "-c", PARTS, str(time.time())]
        done = subprocess.run(command, check=True, capture_output=True, text=True)
        measured.append(json.loads(done.stdout.splitlines()[-1]))
    figures = dict(zip(NAMES, map(list, zip(*measured, strict=True)), strict=True))
    load_average = os.getloadavg()[1]
    rows = [(name, median(values)) for name, values in figures.items()]
    keep("first_seconds", figures | {"load_average": load_average}, rows)


if __name__ == "__main__":
    main(*map(int, sys.argv[1:]))
