"""p99 of online requests while a batch job keeps the same model busy; goal: at most the idle p99 + 2 x the time of one
batch run.

One client asks the endpoint for single frames of 176x144; the job sends batches of 256x256 frames to the same session,
four at a time, and never waits. One run is what the session computes at once: a frame of the job's. Idle and busy take
turns."""

import argparse
import threading
import time
from collections import deque
from contextlib import contextmanager

import numpy as np
from common import keep, median
from serve_common import Target, drive, free_port, infer_request

from genai_ray import InferenceSession, ModelCache
from genai_ray.catalog import ServeProfile
from genai_ray.serve.deployment.endpoint import Endpoint

MODEL = "websr-x2-l"
IN_FLIGHT, BATCH = 4, 8


@contextmanager
def batch_job(cache: ModelCache, frames: np.ndarray):
    """Keep the session busy; yields a list whose length is how many batches were done."""
    over, done, failed = threading.Event(), [], []

    def work() -> None:
        session = cache.get_session(MODEL)
        waiting = deque(session.submit(frames) for _ in range(IN_FLIGHT))
        while not over.is_set():
            done.append(len(waiting.popleft().result()))
            waiting.append(session.submit(frames))
        for pending in waiting:
            pending.result()

    def watched() -> None:
        try:
            work()
        except BaseException as exc:
            failed.append(exc)
            raise

    thread = threading.Thread(target=watched)
    thread.start()
    while len(done) < IN_FLIGHT and not failed:
        time.sleep(0.05)
    try:
        yield done
    finally:
        over.set()
        thread.join()
    if failed:
        raise SystemExit(f"the batch job failed: {failed[0]!r}")


def run_ms(frames: np.ndarray, repetitions: int) -> float:
    """Milliseconds of one run, beside another one: as the job's runs are."""
    with InferenceSession(MODEL) as session:
        session.warmup()
        times = []
        for _ in range(repetitions):
            began = time.perf_counter()
            session.infer(frames)
            times.append(1e3 * (time.perf_counter() - began) * session.num_runs / len(frames))
        return median(times)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seconds", type=float, default=15, help="of each repetition, idle and busy")
    parser.add_argument("--repetitions", type=int, default=3)
    parser.add_argument("--output", default="serve_beside_batch")
    options = parser.parse_args()
    rng = np.random.default_rng(0)
    frames = rng.integers(0, 256, (BATCH, 256, 256, 3), np.uint8)
    body, headers = infer_request("frames", rng.integers(0, 256, (1, 144, 176, 3), np.uint8), frames=True)
    profile = ServeProfile.load("default").override(port=free_port(), grpc_port=None, models=(MODEL,))
    seen: dict[str, list[dict[str, float]]] = {"idle": [], "busy": []}

    def ask(kind: str) -> None:
        latencies = drive(target, clients=1, seconds=options.seconds).latencies_s
        p50, p99 = np.percentile(latencies, (50, 99))
        seen[kind].append({"p50_ms": 1e3 * float(p50), "p99_ms": 1e3 * float(p99), "requests": len(latencies)})

    one_run_ms = run_ms(frames, 5)
    batches = 0
    with Endpoint(profile):
        cache = ModelCache(name=profile.cache)
        target = Target(profile.port, body, [(f"/v2/models/{MODEL}/infer", headers)])
        drive(target, clients=1, requests=20)
        for _ in range(options.repetitions):
            ask("idle")
            with batch_job(cache, frames) as done:
                before = len(done)
                ask("busy")
                batches += len(done) - before
    medians = {
        f"{kind}_{what}": median([one[what] for one in several])
        for kind, several in seen.items()
        for what in ("p50_ms", "p99_ms")
    }
    in_runs = (medians["busy_p99_ms"] - medians["idle_p99_ms"]) / one_run_ms
    frames_per_s = batches * BATCH / (options.repetitions * options.seconds)
    rows = [
        ("one run of the job, ms", one_run_ms),
        *((name.replace("_", " "), value) for name, value in medians.items()),
    ]
    rows += [
        ("busy p99 over idle p99, in runs (goal at most 2)", in_runs),
        ("frames/s of the job meanwhile", frames_per_s),
    ]
    keep(
        options.output,
        {"run_ms": one_run_ms, **medians, "in_runs": in_runs, "job_frames_per_s": frames_per_s, "repetitions": seen},
        rows,
    )


if __name__ == "__main__":
    main()
