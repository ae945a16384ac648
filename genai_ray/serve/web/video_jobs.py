"""Video jobs of the endpoint: an actor that looks after a folder of them, and one a job that runs ``enhance_videos``.

Neither lives in a replica that takes requests. A job's folder says everything of it, so that after the death of either, or of
the whole server, what was not finished goes on from its finished segments. The folder of all jobs is one server's at a time.
"""

from __future__ import annotations

import asyncio
import contextlib
import fcntl
import json
import logging
import os
import shutil
import time
from collections.abc import Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import ray
from ray.exceptions import RayError, RayTaskError

from genai_ray.catalog import PeopleServing
from genai_ray.enhance import EnhanceOptions, EnhanceReport, Progress, enhance_videos
from genai_ray.errors import GenAIRayError, ResourceExhaustedError, TooManyRequestsError
from genai_ray.files import fetch_untrusted
from genai_ray.serve.web.video_job import VideoJob, VideoRequest, read_job
from genai_ray.types import ModelBackend, ModelPrecision
from genai_ray.video import check_container

__all__ = ["SOURCE", "VideoJobs"]

_log = logging.getLogger(__name__)

SOURCE = "source"
"""Name, without its suffix, of the video in a job's folder."""

_STATE_FILE = "job.json"
_LOCK_FILE = ".lock"
_OTHER_WITHIN_S, _LOOK_S = 5.0, 0.1
"""A server that was killed lets go of the folder well within this."""

_UPKEEP_WITHIN_S = 30.0
_ORPHANS_AFTER_S = 3600.0
_HEARD_WITHIN_S = 60.0
"""A replica says that a video still comes far more often."""
_IDLE_EXIT_S = 60.0
"""An actor whose folder is empty goes after this."""

RESUME_AFTER_S = 2.0
"""Work of an actor that died ends within a second of it; jobs that are taken over wait for that."""

_TRIES = 3


class VideoJobs:
    """Looks after the jobs of one folder; an async actor, so that everything here runs on one thread.

    Args:
        folder: The folder of all jobs; each has one of its own in it.
        options: How many, how large, how long.
    """

    def __init__(self, folder: str, options: PeopleServing) -> None:
        self._folder, self._options = Path(folder), options
        self._jobs: dict[str, VideoJob] = {}
        self._coming: dict[str, tuple[int, float]] = {}
        """Videos that are being sent: their bytes, and when something was heard of them."""
        self._bytes: dict[str, int] = {}
        """Of the videos of jobs that are not over, and of the results of those that are."""
        self._running: dict[str, Any] = {}
        self._slots = asyncio.Semaphore(options.videos_at_once)
        self._tasks: set[asyncio.Task[None]] = set()
        self._began_s = self._used_s = time.monotonic()
        self._opening = asyncio.Lock()
        self._lock: int | None = None
        self._self: Any = ray.get_runtime_context().current_actor
        self._self.open.remote()  # after a restart nobody else may ask for a while

    async def open(self) -> None:
        """Take over what the folder has; a second call does nothing.

        Raises:
            ResourceExhaustedError: If another server looks after it.
        """
        async with self._opening:
            if self._lock is None:
                self._lock = await self._hold_folder()
                self._take_over()

    async def submit(self, job_id: str, request: VideoRequest) -> VideoJob:
        """Take a job whose video is in its folder, or is to be fetched.

        Args:
            job_id: Unique; the name of its folder.
            request: What it is to do.

        Returns:
            The job.

        Raises:
            TooManyRequestsError: If too many wait or run.
        """
        if job_id not in self._coming:
            await self.begin(job_id, 0)
        if job_id not in self._jobs:  # else the call came twice
            folder = self._folder / job_id
            folder.mkdir(parents=True, exist_ok=True)
            job = VideoJob(job_id, request, time.time())
            self._put(job)  # raises where the disk is full, and nothing was taken
            self._bytes[job_id] = self._bytes_of(job)
            self._spawn(self._work(job_id, 0.0))
        self._coming.pop(job_id, None)
        return self._jobs[job_id]

    async def begin(self, job_id: str, num_bytes: int) -> None:
        """Count a video from before its first byte, until its job is submitted or abandoned, or nothing is heard of it.

        Args:
            job_id: Of the job that it will be.
            num_bytes: Most bytes that it has.

        Raises:
            TooManyRequestsError: If too many are being sent, wait or run, or too many bytes.
        """
        await self.open()
        self._used_s = time.monotonic()
        if job_id in self._jobs:  # the call came twice
            return
        self._coming.pop(job_id, None)
        self._forget_silent()
        unfinished = [one for one, job in self._jobs.items() if not job.is_over]
        count, most = len(unfinished) + len(self._coming), self._options.max_videos
        if count >= most:
            raise TooManyRequestsError(f"{count} videos are being sent, wait or run", f"{most}", "Send it again later.")
        held = sum(self._bytes[one] for one in unfinished) + sum(size for size, _ in self._coming.values())
        if held + num_bytes > self._options.max_videos_bytes:
            what = f"a video of up to {num_bytes} bytes beside {held} of those that are being sent, wait or run"
            raise TooManyRequestsError(what, f"{self._options.max_videos_bytes} together", "Send it again later.")
        self._coming[job_id] = num_bytes, time.monotonic()

    async def renew(self, job_id: str, num_bytes: int) -> None:
        """Note that a video still comes, also after this actor was started again.

        Args:
            job_id: As for ``begin``.
            num_bytes: As for ``begin``.
        """
        await self.open()
        if job_id not in self._jobs:
            self._coming[job_id] = num_bytes, time.monotonic()

    async def abandon(self, job_id: str) -> None:
        """Note that a video does not come any more.

        Args:
            job_id: As for ``begin``.
        """
        self._coming.pop(job_id, None)

    async def describe(self, job_id: str) -> VideoJob | None:
        """Return a job.

        Args:
            job_id: Which.

        Returns:
            The job as it is now; None where there is none.
        """
        await self.open()
        return self._jobs.get(job_id)

    async def remove(self, job_id: str) -> VideoJob | None:
        """Cancel a job that is not over, and remove its files; one that is over is forgotten.

        Args:
            job_id: Which.

        Returns:
            The cancelled job; None for one that was over or is not there.
        """
        job = await self.describe(job_id)
        if job is None or job.is_over:
            self._jobs.pop(job_id, None)
            self._bytes.pop(job_id, None)
            await asyncio.to_thread(_remove, self._folder / job_id)
            return None
        self._put(replace(job, state="cancelled", ended_s=time.time()))
        self._bytes[job_id] = 0
        if (runner := self._running.get(job_id)) is not None:
            ray.kill(runner)
        else:
            await asyncio.to_thread(_remove_files, self._folder / job_id)
        return self._jobs[job_id]

    async def report(self, job_id: str, progress: Progress) -> None:
        """Note how far a job is.

        Args:
            job_id: Which.
            progress: What its runner says.
        """
        job = self._jobs.get(job_id)
        if job is not None and job.state == "running":
            done = replace(
                job, stage=progress.stage, frames_done=progress.frames_done, frames_total=progress.frames_total
            )
            self._jobs[job_id] = done  # not worth a file: the runner says it again

    async def _hold_folder(self) -> int:
        """Keep other servers off the folder as long as this process lives: two at one job would remove each other's files."""
        while (handle := _try_lock(self._folder / _LOCK_FILE)) is None:
            if time.monotonic() - self._began_s > _OTHER_WITHIN_S:
                _log.warning("another server looks after %s", self._folder)
                do = "Send it to that one, or give one of them a people.videos_folder of its own."
                raise ResourceExhaustedError("video jobs of a folder that another server looks after", do=do)
            await asyncio.sleep(_LOOK_S)
        return handle

    def _take_over(self) -> None:
        for path in sorted(self._folder.glob(f"*/{_STATE_FILE}"), key=lambda path: path.stat().st_mtime):
            try:
                job = read_job(path)
            except (OSError, ValueError, TypeError, KeyError) as exc:
                _log.warning("%s is not understood and left alone: %s", path, exc)
                continue
            self._jobs[job.job_id] = job
            self._bytes[job.job_id] = self._bytes_of(job)
            if not job.is_over:
                self._spawn(self._work(job.job_id, RESUME_AFTER_S))
        self._spawn(self._upkeep())

    async def _work(self, job_id: str, after_s: float) -> None:
        await asyncio.sleep(after_s)
        async with self._slots:
            job = self._jobs.get(job_id)
            if job is None or job.is_over:
                return
            self._put(replace(job, state="running", stage="starting"))
            folder = self._folder / job_id
            kind: Any = ray.remote(_Runner).options(num_cpus=0, max_restarts=_TRIES - 1, max_task_retries=_TRIES - 1)
            self._running[job_id] = runner = kind.remote(str(folder), job_id, job.request)
            report, error = None, None
            try:
                report = await runner.run.remote(self._self, self._options)
            except RayError as exc:
                error = _reason(exc, folder, job.request.name)
            del self._running[job_id]
            job = self._jobs.get(job_id)
            if job is None or job.state == "cancelled":  # None: cancelled, and then removed
                await asyncio.to_thread(_remove_files, folder)
                return
            frames = report["frames"] if report else job.frames_done
            self._put(
                replace(
                    job,
                    state="failed" if error else "done",
                    stage="",
                    frames_done=frames,
                    ended_s=time.time(),
                    error=error,
                    report=report,
                )
            )
            await asyncio.to_thread(_remove_files, folder, keep="result" if report else "")
            if job_id in self._jobs:
                self._bytes[job_id] = self._bytes_of(self._jobs[job_id])
            with contextlib.suppress(OSError):  # the upkeep tries it again, and says so
                await self._keep_few()

    def _forget_silent(self) -> None:
        """Forget videos of which nothing is heard any more: their replica died."""
        now_s = time.monotonic()
        self._coming = {one: what for one, what in self._coming.items() if now_s - what[1] < _HEARD_WITHIN_S}

    def _bytes_of(self, job: VideoJob) -> int:
        """Return the bytes of a job's video, or of its result; what is not fetched yet counts as the largest."""
        name = "result" if job.is_over else SOURCE
        path = next((self._folder / job.job_id).glob(f"{name}.*"), None)
        if path is not None:
            return path.stat().st_size
        return self._options.max_video_bytes if job.request.uri and not job.is_over else 0

    async def _keep_few(self) -> None:
        """Keep no more jobs that are over, and no more bytes of their results, than is allowed."""
        over = sorted(
            (job for job in self._jobs.values() if job.is_over), key=lambda job: job.ended_s or 0.0, reverse=True
        )
        num_bytes = 0
        for index, job in enumerate(over):
            num_bytes += self._bytes.get(job.job_id, 0)
            if index and (index >= self._options.keep_videos or num_bytes > self._options.keep_videos_bytes):
                await asyncio.to_thread(_remove, self._folder / job.job_id)
                self._jobs.pop(job.job_id, None)
                self._bytes.pop(job.job_id, None)

    async def _upkeep(self) -> None:
        """Forget what was kept long enough; end this actor when nothing is left to look after. A disk that fails is tried again the next time."""
        keep_s = self._options.keep_videos_s
        while True:
            now_s = time.time()
            try:
                await self._forget_old(now_s, keep_s)
                await self._keep_few()
            except OSError as exc:
                _log.warning("video jobs that are over cannot be removed now: %s", exc)
            self._forget_silent()
            if not self._jobs and not self._coming and time.monotonic() - self._used_s > min(_IDLE_EXIT_S, keep_s):
                ray.kill(self._self)
            await asyncio.sleep(min(_UPKEEP_WITHIN_S, keep_s))

    async def _forget_old(self, now_s: float, keep_s: float) -> None:
        for job in [job for job in self._jobs.values() if job.ended_s is not None and now_s - job.ended_s > keep_s]:
            try:
                await asyncio.to_thread(_remove, self._folder / job.job_id)
            except OSError as exc:  # it stays known, and is removed later
                _log.warning("video job %s is over and cannot be removed now: %s", job.job_id, exc)
            else:
                self._jobs.pop(job.job_id, None)
                self._bytes.pop(job.job_id, None)
        for folder in [
            folder for folder in self._folder.glob("*/") if folder.name not in self._jobs and _is_orphan(folder, now_s)
        ]:
            await asyncio.to_thread(_remove, folder)

    def _put(self, job: VideoJob) -> None:
        """Note a job, in its folder first; where the disk is full a job that is known already is noted here alone."""
        path = self._folder / job.job_id / _STATE_FILE
        partial = path.with_suffix(".partial")
        try:
            partial.write_text(json.dumps(asdict(job)))
            partial.replace(path)
        except OSError as exc:
            if job.job_id not in self._jobs:
                raise
            _log.error("state %s of video job %s cannot be written: %s", job.state, job.job_id, exc)
        self._jobs[job.job_id] = job
        self._used_s = time.monotonic()

    def _spawn(self, work: Any) -> None:
        task = asyncio.get_running_loop().create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)


class _Runner:
    """Runs one job; an actor and no task, since ``ray.cancel`` of a task that ends at that moment aborts the process that calls it."""

    def __init__(self, folder: str, job_id: str, request: VideoRequest) -> None:
        self._folder, self._job_id, self._request = Path(folder), job_id, request

    def run(self, jobs: Any, limits: PeopleServing) -> dict[str, Any]:
        """Run it; the same folder again goes on from its finished segments."""
        request = self._request
        source = next(self._folder.glob(f"{SOURCE}.*"), None) or _fetch(request, self._folder, limits)
        check_container(source)
        options = EnhanceOptions(
            backend=ModelBackend(request.backend),
            precision=ModelPrecision(request.precision),
            device=request.device,
            device_kinds=request.device_kinds,
            params=request.params,
            overwrite=True,  # a result that was published just before a death
            cache_name=request.cache_name,
        )
        report = enhance_videos(
            source,
            self._folder / f"result{request.suffix}",
            models=request.sources,
            options=options,
            on_progress=lambda progress: jobs.report.remote(self._job_id, progress),
        )
        return _facts(report, request.models)


def _fetch(request: VideoRequest, place: Path, limits: PeopleServing) -> Path:
    """Copy the video of a URI into the job's folder; it appears there whole or not at all."""
    uri = request.uri or ""
    partial = place / "fetched.partial"
    fetch_untrusted(uri, partial, limits.max_video_bytes, limits.allowed_uris)
    return partial.rename(place / f"{SOURCE}{Path(urlsplit(uri).path).suffix[:6] or '.bin'}")


def _facts(report: EnhanceReport, names: Sequence[str]) -> dict[str, Any]:
    (video,) = report.videos
    return {
        "frames": report.frames,
        "fps": round(report.fps, 3),
        "elapsed_s": round(report.elapsed_s, 3),
        "segments": report.segments,
        "segments_reused": report.segments_reused,
        "size_in": list(video.size_in),
        "size_out": list(video.size_out),
        "notes": list(video.notes),
        "models": [asdict(use) | {"model_id": name} for use, name in zip(report.models, names, strict=True)],
    }


def _reason(exc: RayError, folder: Path, name: str) -> str:
    """Say why a job failed, in words that name no path of this machine."""
    cause = exc.cause if isinstance(exc, RayTaskError) else exc
    if isinstance(cause, GenAIRayError):
        text = str(cause)
        for path in (*folder.glob(f"{SOURCE}.*"), folder):
            text = text.replace(str(path), name)
        return text
    _log.error("video job %s failed", folder.name, exc_info=exc)
    if isinstance(exc, RayTaskError):
        return f"the server failed: {cause.strerror if isinstance(cause, OSError) else type(cause).__name__}"
    return f"its process died {_TRIES} times: {type(exc).__name__}"


def _try_lock(path: Path) -> int | None:
    """Lock a file for as long as this process lives; None where another one has it."""
    handle = os.open(path, os.O_RDWR | os.O_CREAT, 0o600)
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        os.close(handle)
        return None
    except OSError as exc:
        _log.warning("%s cannot be locked (%s): only one server may have this folder", path, exc)
    return handle


def _is_orphan(folder: Path, now_s: float) -> bool:
    """Tell whether a folder is what an upload left whose replica died: nothing is known of it, and nothing has come for a while."""
    try:
        changed_s = max(path.stat().st_mtime for path in (folder, *folder.iterdir()))
        return not (folder / _STATE_FILE).exists() and now_s - changed_s > _ORPHANS_AFTER_S
    except OSError:  # it has just gone
        return False


def _remove_files(folder: Path, keep: str = "") -> None:
    """Remove everything of a job but what is known of it, and its result where that is to stay."""
    for path in list(folder.glob("*")):
        if path.name != _STATE_FILE and not (keep and path.stem == keep and path.is_file()):
            _remove(path)


def _remove(path: Path) -> None:
    if path.is_dir():
        shutil.rmtree(path, ignore_errors=True)
    else:
        with contextlib.suppress(FileNotFoundError):
            os.unlink(path)
