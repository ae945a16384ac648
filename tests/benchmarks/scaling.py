"""How the scheduling of ``enhance`` scales: the same job on 1, 2, 4 and 8 logical nodes of one machine.

**The session is a timed stub, in this benchmark alone**: it sleeps 0.25 s for each frame, one at a time, and repeats
the pixels. So eight nodes do not need eight processors. All else is real: raylets, the cache and its replicas, tasks,
decoding, checks, encoding and the join, which share the processors of this machine.

scaling.py [NODES ...]: about twelve minutes on a quiet machine. On a busy one the nodes wait for processors: all
processes together take a third of a second of them for each segment. An earlier job on the same cluster has started the
processes. Goal: with 8 nodes at least 0.95 of 8 times the speed of one. The time of a job is modelled as

    seconds = (segments * frames_per_segment * FRAME_S + segments * per_segment_s) / nodes + fixed_s

where ``per_segment_s`` and ``fixed_s`` are fitted to the measured jobs by least squares.
"""

import os
import sys
import tempfile
from pathlib import Path

import numpy as np
import psutil
import ray
from common import keep
from ray.cluster_utils import Cluster

from genai_ray import EnhanceOptions, ModelCache, enhance_videos
from tests.processes import descendants, title
from tests.video.clips import write

FRAME_S = 0.25
SEGMENT_FRAMES = 16
SEGMENTS = 64
WARM_SEGMENTS = 16
NODES = (1, 2, 4, 8)
NODE = {"num_cpus": 2, "num_gpus": 0, "memory": 2_000_000_000, "object_store_memory": 100_000_000}


def use_stub() -> None:
    """Put the stub in the place of the session, in each process that Ray starts."""
    import threading
    import time

    from genai_ray.session import InferenceSession

    turn = threading.Lock()

    def infer(self, frames, params=None, *, is_online=False):
        with turn:
            time.sleep(FRAME_S * len(frames))
        return frames.repeat(2, axis=1).repeat(2, axis=2)

    InferenceSession.infer = infer


def cpu_s(name: str = "") -> float:
    """Return processor seconds so far of this process's descendants whose title begins like this."""
    found = 0.0
    for pid in descendants(os.getpid(), with_agents=True):
        if title(pid).startswith(name):
            times = psutil.Process(pid).cpu_times()
            found += times.user + times.system
    return found


def run_job(clip: Path, output: Path) -> float:
    """Return seconds from the first decoded frame to the closed file."""
    options = EnhanceOptions(segment_frames=SEGMENT_FRAMES, replicas=None)
    report = enhance_videos(clip, output, models="websr-x2-s", options=options)
    return report.frames / report.fps


def measure(nodes: int, folder: Path) -> dict[str, float]:
    clips = {}
    for count in (WARM_SEGMENTS, SEGMENTS):
        pts = list(range(count * SEGMENT_FRAMES))
        clips[count] = write(folder / f"{count}.mkv", size=(64, 48), pts=pts, options={"g": "16"}, tracks=0)
    cluster = Cluster(initialize_head=True, head_node_args=NODE | {"include_dashboard": False})
    try:
        for _ in range(nodes - 1):
            cluster.add_node(**NODE)
        ray.init(cluster.address, log_to_driver=False, runtime_env={"worker_process_setup_hook": use_stub})
        with ModelCache() as cache:
            run_job(clips[WARM_SEGMENTS], folder / f"warm-{nodes}.mkv")
            before = cpu_s("ray::CacheActor"), cpu_s()
            seconds = run_job(clips[SEGMENTS], folder / f"out-{nodes}.mkv")
            after = cpu_s("ray::CacheActor"), cpu_s()
            sessions = sum(entry.state == "ready" for entry in cache.status().models)
    finally:
        ray.shutdown()
        cluster.shutdown()
    assert sessions == nodes, f"{sessions} sessions on {nodes} nodes"
    cache_s, all_s = (later - earlier for earlier, later in zip(before, after, strict=True))
    return {
        "seconds": seconds,
        "share_of_session_time": SEGMENTS * SEGMENT_FRAMES * FRAME_S / nodes / seconds,
        "cache_actor_cpu_ms_per_segment": 1000 * cache_s / SEGMENTS,
        "cpu_ms_per_segment": 1000 * all_s / SEGMENTS,
    }


def main(*counts: int) -> None:
    counts = counts or NODES
    load_average = os.getloadavg()[0]
    with tempfile.TemporaryDirectory() as folder:
        found = {nodes: measure(nodes, Path(folder)) for nodes in counts}
    session_s = SEGMENTS * SEGMENT_FRAMES * FRAME_S
    for nodes, one in found.items():
        one["efficiency"] = found[counts[0]]["seconds"] * counts[0] / (nodes * one["seconds"])
    terms = np.array([(SEGMENTS / nodes, 1.0) for nodes in counts])
    rest = np.array([one["seconds"] - session_s / nodes for nodes, one in found.items()])
    (per_segment_s, fixed_s), *_ = np.linalg.lstsq(terms, rest, rcond=None)
    largest = counts[-1]
    keep(
        "scaling",
        {
            "stub": f"the session sleeps {FRAME_S} s for each frame",
            "segments": SEGMENTS,
            "frames_per_segment": SEGMENT_FRAMES,
            "frame_s": FRAME_S,
            "load_average": load_average,
            "per_segment_s": float(per_segment_s),
            "fixed_s": float(fixed_s),
            "nodes": {str(nodes): one for nodes, one in found.items()},
        },
        [
            *((f"{nodes} nodes: seconds", one["seconds"]) for nodes, one in found.items()),
            *((f"{nodes} nodes: efficiency", one["efficiency"]) for nodes, one in found.items()),
            *((f"{nodes} nodes: share of session time", one["share_of_session_time"]) for nodes, one in found.items()),
            ("processor ms of the cache actor for each segment", found[largest]["cache_actor_cpu_ms_per_segment"]),
            ("processor ms of all processes for each segment", found[largest]["cpu_ms_per_segment"]),
            (
                f"seconds = ({SEGMENTS} * {SEGMENT_FRAMES} * {FRAME_S} + {SEGMENTS} * per_segment_s) / nodes + fixed_s",
                f"per_segment_s = {per_segment_s:.4f}, fixed_s = {fixed_s:.3f}",
            ),
        ],
    )


if __name__ == "__main__":
    main(*map(int, sys.argv[1:]))
