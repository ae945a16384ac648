"""Faults planted where a segment is made or kept, and what finds each of them.

Used by a test and by ``tests/benchmarks/planted_faults.py``. Frames are spoiled as they come from the session; a wrong
model, precision or colour matrix is a real one; bits are flipped in real files of a work folder.
"""

import random
from collections import Counter
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import numpy as np

from genai_ray import EnhanceOptions
from genai_ray.cluster import PendingCall
from genai_ray.enhance.job.clip_plan import plan_timeline
from genai_ray.enhance.job.records import build_note
from genai_ray.enhance.job.segment_store import SegmentStore, hash_segment
from genai_ray.enhance.plan.options import check_models
from genai_ray.enhance.segment import segment
from genai_ray.enhance.segment.needs import find_requests
from genai_ray.enhance.segment.segment import JobContext, enhance_segment
from genai_ray.errors import QualityError
from genai_ray.types import ModelPrecision
from genai_ray.video import Encoding, digest_part

MODEL = "websr-x2-s"
OTHERS = ("websr-x2-m", "websr-x2-l")
"""Models of the same size and of nearly the same result: the hardest to tell apart."""

MATRICES = (1, 6, 9)
"""BT.709, BT.601 and BT.2020 of ITU-T H.273."""

MENDED = "the checks; computed again in FP32"
REFUSED = "the checks; refused"
AGAIN = "computing again from the source"
STORED = "the hash of the work folder"
NO_EFFECT = "no effect: the decoded frames are those of a clean run"


class Planter:
    """Plants faults into the segments of one video, each computed cleanly before.

    Args:
        source: The video.
        folder: Where segments go.
        cache: Holds the models.
        segment_frames: Most frames in a segment; at most a batch.
    """

    def __init__(self, source, folder, cache, segment_frames=5):
        self.folder = folder
        self.options = EnhanceOptions(
            encoding=Encoding(codec="libx264", preset="ultrafast"), segment_frames=segment_frames, check="strict"
        )
        specs = check_models(MODEL, self.options)
        self.timeline, self.sizes, _ = plan_timeline(str(source), specs, self.options, ".mp4")
        self.cache = cache
        self.num_segments = len(self.timeline.plan.segments)
        self.lengths = [part.stop - part.start for part in self.timeline.plan.segments]
        self.store = SegmentStore(str(folder / "work"), [f"{i:032x}" for i in range(self.num_segments)], has_notes=True)
        self.store.open({})
        self.clean = []
        self.files = []
        job = self.job()
        for index in range(self.num_segments):
            path = folder / "segment"
            result, digest = self.make(index, job)
            self.clean.append(digest)
            name = self.store.name(index, hash_segment(str(path)))
            self.store.finish(index, path, name, build_note(replace(result, frames_digest=digest), job.requests[0]))
            self.files.append(Path(self.store.place(index, name)))
        again = [self.make(index, job)[1] for index in range(self.num_segments)]
        assert again == self.clean  # what ``verify`` compares with

    def job(self, model=MODEL, precision=ModelPrecision.FP32):
        options = replace(self.options, precision=precision)
        specs = check_models(model, options)
        requests = find_requests(self.timeline.plan.info, specs, options)
        return JobContext(specs, requests, options, self.cache, "planted", "cpu")

    def make(self, index, job, timeline=None):
        path = self.folder / "segment"
        result = enhance_segment(timeline or self.timeline, self.sizes, index, path, job)
        count, digest = digest_part(path)
        assert count == result.frames == self.lengths[index]
        return result, digest

    def judge(self, index, job, timeline=None):
        """Make a segment with what is planted, and say what finds it."""
        try:
            result, digest = self.make(index, job, timeline)
        except QualityError:
            return REFUSED
        if digest != self.clean[index]:
            return AGAIN
        return MENDED if result.recomputed else NO_EFFECT


@contextmanager
def spoiled(spoil, *, is_lasting):
    """Spoil what the session returns: the first time, or always."""
    original = PendingCall.result
    calls = Counter()

    def result(self, *args, **kwargs):
        frames = original(self, *args, **kwargs)
        calls["all"] += 1
        if calls["all"] > 1 and not is_lasting:
            return frames
        frames = np.array(frames)
        spoil(frames)
        return frames

    PendingCall.result = result
    try:
        yield
    finally:
        PendingCall.result = original


def plant_nan(planter, index, turn, chance):
    """NaN in a part of a frame, or in all of it: pixels of a video have no NaN, a session makes 0 of it."""

    def spoil(frames):
        frame = chance.randrange(len(frames))
        height, width = frames.shape[1:3]
        rows, columns = chance.randint(4, height), chance.randint(4, width)
        top, left = chance.randint(0, height - rows), chance.randint(0, width - columns)
        frames[frame, top : top + rows, left : left + columns] = 0

    with spoiled(spoil, is_lasting=chance.random() < 0.5):
        return planter.judge(index, planter.job())


def plant_black(planter, index, turn, chance):
    def spoil(frames):
        frames[chance.randrange(len(frames))] = 0

    with spoiled(spoil, is_lasting=chance.random() < 0.5):
        return planter.judge(index, planter.job())


def plant_swap(planter, index, turn, chance):
    def spoil(frames):
        first = chance.randrange(len(frames) - 1)
        frames[[first, first + 1]] = frames[[first + 1, first]]

    with spoiled(spoil, is_lasting=chance.random() < 0.5):
        return planter.judge(index, planter.job())


def plant_flip(planter, index, turn, chance):
    """One bit of a finished segment, or of its part of the record, between kill and resume."""
    path = planter.files[index]
    if chance.random() < 0.25:
        path = path.with_suffix(".note")
    data = path.read_bytes()
    at, bit = chance.randrange(len(data)), chance.randrange(8)
    path.write_bytes(data[:at] + bytes([data[at] ^ 1 << bit]) + data[at + 1 :])
    try:
        whole, _ = planter.store.finished()
        assert set(whole) >= set(range(planter.num_segments)) - {index}
        return NO_EFFECT if index in whole else STORED
    finally:
        path.write_bytes(data)


def plant_model(planter, index, turn, chance):
    return planter.judge(index, planter.job(model=OTHERS[turn % len(OTHERS)]))


def plant_precision(planter, index, turn, chance):
    return planter.judge(index, planter.job(precision=ModelPrecision.FP16))


def plant_matrix(planter, index, turn, chance):
    """Colours converted by another matrix than the tag says, when the source is read or when the result is written."""
    timeline = planter.timeline
    own = timeline.plan.info.colour
    others = [matrix for matrix in MATRICES if matrix != own.matrix]
    other = replace(own, matrix=others[turn % len(others)])
    if turn // len(others) % 2:
        info = replace(timeline.plan.info, colour=other)
        return planter.judge(index, planter.job(), replace(timeline, plan=replace(timeline.plan, info=info)))
    writer = segment.open_writer

    def other_writer(*args, **kwargs):
        made = writer(*args, **kwargs)
        made.colour = other
        return made

    segment.open_writer = other_writer
    try:
        return planter.judge(index, planter.job())
    finally:
        segment.open_writer = writer


KINDS = {
    "NaN": plant_nan,
    "black frame": plant_black,
    "swapped frames": plant_swap,
    "bit flip between kill and resume": plant_flip,
    "wrong model": plant_model,
    "wrong precision": plant_precision,
    "wrong colour matrix": plant_matrix,
}


def plant_all(planter, counts, seed, tell=lambda kind, found: None):
    """Plant so many faults of each kind, in one segment after the other; return what found how many of them."""
    found = {}
    for kind, count in counts.items():
        chance = random.Random(f"{seed} {kind}")
        turns = (divmod(number, planter.num_segments) for number in range(count))
        found[kind] = Counter(KINDS[kind](planter, index, turn, chance) for turn, index in turns)
        tell(kind, found[kind])
    return found
