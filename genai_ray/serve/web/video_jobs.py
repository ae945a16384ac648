"""All video jobs: the actor that keeps them in a folder, and each replica's connection to it.

Jobs do not run in the replicas that take requests. A job's folder holds its whole state: after the death of its
process, of this actor or of the server it resumes from its finished segments. Only one server at a time uses a folder.
"""

from __future__ import annotations

import asyncio
import contextlib
import fcntl
import hashlib
import json
import logging
import os
import shutil
import time
from collections.abc import Awaitable, Callable
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any, Concatenate, ParamSpec, TypeVar

import ray
from ray.exceptions import ActorDiedError, ActorUnavailableError, GetTimeoutError, RayError

from genai_ray.catalog import WebOptions
from genai_ray.cluster.client.connection import start_on_head
from genai_ray.cluster.runtime.replies import wait_for
from genai_ray.enhance import Progress
from genai_ray.errors import DeadlineExceededError, GenAIRayError, ResourceExhaustedError, TooManyRequestsError
from genai_ray.files import cache_folder
from genai_ray.serve.web.video_job import SOURCE, TRIES, VideoJob, VideoRequest, VideoRunner, explain_failure, read_job

__all__ = ["VideoDesk", "VideoJobs", "resume_videos"]

_log = logging.getLogger(__name__)

Arguments = ParamSpec("Arguments")
Result = TypeVar("Result")

_STATE_FILE = "job.json"
_LOCK_FILE = ".lock"
_LOCK_WITHIN_S = 5.0
"""A server that was killed releases its lock sooner than this."""
_RETRY_S = 0.1
_CALL_WITHIN_S = 20.0
_MAINTENANCE_S = 30.0
_ORPHAN_AFTER_S = 3600.0
_SILENT_AFTER_S = 60.0
"""Replicas renew an upload far more often than this."""
_IDLE_EXIT_S = 60.0
"""The actor of an empty folder exits after this."""

RESUME_AFTER_S = 2.0
"""The work of a dead actor ends within a second; jobs that are taken over wait for that."""


class VideoDesk:
    """A replica's connection to the video jobs; starts their actor if there is none.

    Args:
        options: Where jobs are kept, how many, how large, how long.
    """

    def __init__(self, options: WebOptions) -> None:
        self.folder = Path(options.videos_folder or cache_folder() / "videos").absolute()
        self.actor_name = f"videos:{hashlib.sha256(str(self.folder).encode()).hexdigest()[:12]}"
        self._options = options
        self._actor: Any = None

    def call(
        self,
        method: Callable[Concatenate[VideoJobs, Arguments], Awaitable[Result]],
        *args: Arguments.args,
        **kwargs: Arguments.kwargs,
    ) -> Result:
        """Call the actor, again if it died. It blocks: call it on a thread.

        Args:
            method: A method of ``VideoJobs``.
            args: Its arguments.
            kwargs: Its arguments by name.

        Returns:
            Its result.

        Raises:
            DeadlineExceededError: If it does not answer in time.
            GenAIRayError: What it raised.
        """
        deadline = time.monotonic() + _CALL_WITHIN_S
        late = DeadlineExceededError(f"video jobs did not answer within {_CALL_WITHIN_S:g} s")
        while True:
            try:
                if self._actor is None:
                    self.folder.mkdir(parents=True, exist_ok=True)
                    self._actor = start_on_head(VideoJobs, self.actor_name, str(self.folder), self._options)
                ref = getattr(self._actor, method.__name__).remote(*args, **kwargs)
                result: Result = wait_for(ref, max(deadline - time.monotonic(), 0.0))
                return result
            except ActorDiedError:
                self._actor = None  # it exited because it was idle
            except ActorUnavailableError:
                pass  # Ray restarts it
            except GetTimeoutError as exc:
                raise late from exc
            if time.monotonic() > deadline:
                raise late
            time.sleep(_RETRY_S)


def resume_videos(options: WebOptions) -> None:
    """Resume the jobs that an earlier server left. It blocks: call it on a thread.

    Args:
        options: Where they are kept.
    """
    desk = VideoDesk(options)
    try:
        if any(desk.folder.glob("*/")):
            desk.call(VideoJobs.open)
    except GenAIRayError as exc:
        _log.warning("video jobs resume only when a client asks for one: %s", exc)


class VideoJobs:
    """Keeps the jobs of one folder. It is an async actor: everything here runs on one thread.

    Args:
        folder: Folder of all jobs; each has a folder of its own in it.
        options: How many, how large, how long.
    """

    def __init__(self, folder: str, options: WebOptions) -> None:
        self._folder = Path(folder)
        self._options = options
        self._jobs: dict[str, VideoJob] = {}
        self._uploads: dict[str, tuple[int, float]] = {}
        """(bytes, time of the last sign of life) of each video that is being uploaded."""
        self._bytes: dict[str, int] = {}
        """Bytes of each unfinished job's video, and of each finished job's result."""
        self._running: dict[str, Any] = {}
        self._slots = asyncio.Semaphore(options.videos_at_once)
        self._tasks: set[asyncio.Task[None]] = set()
        self._began_s = time.monotonic()
        self._used_s = self._began_s
        self._opening = asyncio.Lock()
        self._lock: int | None = None
        self._self: Any = ray.get_runtime_context().current_actor
        self._self.open.remote()  # after a restart, jobs resume before anybody asks

    async def open(self) -> None:
        """Take over the jobs in the folder; a second call does nothing.

        Raises:
            ResourceExhaustedError: If another server uses the folder.
        """
        async with self._opening:
            if self._lock is None:
                self._lock = await self._hold_folder()
                self._take_over()

    async def submit(self, job_id: str, request: VideoRequest) -> VideoJob:
        """Queue a job whose video is in its folder, or will be fetched.

        Args:
            job_id: Unique; the name of its folder.
            request: What it is to do.

        Returns:
            The job.

        Raises:
            TooManyRequestsError: If too many jobs wait or run.
        """
        if job_id not in self._uploads:
            await self.begin(job_id, 0)
        if job_id not in self._jobs:  # else the call came twice
            folder = self._folder / job_id
            folder.mkdir(parents=True, exist_ok=True)
            job = VideoJob(job_id, request, time.time())
            self._put(job)  # raises if the disk is full; then there is no job
            self._bytes[job_id] = self._bytes_of(job)
            self._spawn(self._work(job_id, 0.0))
        self._uploads.pop(job_id, None)
        return self._jobs[job_id]

    async def begin(self, job_id: str, num_bytes: int) -> None:
        """Count an upload before its first byte, until its job is submitted or abandoned, or its replica falls silent.

        Args:
            job_id: The job that it will become.
            num_bytes: Most bytes that it may have.

        Raises:
            TooManyRequestsError: If too many videos, or too many bytes, are being sent, wait or run.
        """
        await self.open()
        self._used_s = time.monotonic()
        if job_id in self._jobs:  # the call came twice
            return
        self._uploads.pop(job_id, None)
        self._forget_silent_uploads()
        unfinished = [one for one, job in self._jobs.items() if not job.is_over]
        count = len(unfinished) + len(self._uploads)
        most = self._options.max_videos
        if count >= most:
            raise TooManyRequestsError(f"{count} videos are being sent, wait or run", f"{most}", "Send it again later.")
        held = sum(self._bytes[one] for one in unfinished) + sum(size for size, _ in self._uploads.values())
        if held + num_bytes > self._options.max_videos_bytes:
            what = f"a video of up to {num_bytes} bytes beside {held} of those that are being sent, wait or run"
            raise TooManyRequestsError(what, f"{self._options.max_videos_bytes} together", "Send it again later.")
        self._uploads[job_id] = num_bytes, time.monotonic()

    async def renew(self, job_id: str, num_bytes: int) -> None:
        """Note that an upload goes on; this actor may have been restarted since ``begin``.

        Args:
            job_id: As for ``begin``.
            num_bytes: As for ``begin``.
        """
        await self.open()
        if job_id not in self._jobs:
            self._uploads[job_id] = num_bytes, time.monotonic()

    async def abandon(self, job_id: str) -> None:
        """Forget an upload that failed.

        Args:
            job_id: As for ``begin``.
        """
        self._uploads.pop(job_id, None)

    async def describe(self, job_id: str) -> VideoJob | None:
        """Return a job.

        Args:
            job_id: Which.

        Returns:
            The job as it is now; None if it is unknown.
        """
        await self.open()
        return self._jobs.get(job_id)

    async def remove(self, job_id: str) -> VideoJob | None:
        """Cancel an unfinished job and remove its files, or forget a finished one.

        Args:
            job_id: Which.

        Returns:
            The cancelled job; None if the job was over or unknown.
        """
        job = await self.describe(job_id)
        if job is None or job.is_over:
            self._jobs.pop(job_id, None)  # nobody is told of it while its files are removed
            await self._forget(job_id)
            return None
        self._put(replace(job, state="cancelled", ended_s=time.time()))
        self._bytes[job_id] = 0
        if (runner := self._running.get(job_id)) is not None:
            ray.kill(runner)
        else:
            await asyncio.to_thread(_remove_files, self._folder / job_id)
        return self._jobs[job_id]

    async def report(self, job_id: str, progress: Progress) -> None:
        """Note the progress of a job.

        Args:
            job_id: Which.
            progress: From its runner.
        """
        job = self._jobs.get(job_id)
        if job is not None and job.state == "running":
            job = replace(job, stage=progress.stage, frames_done=progress.frames_done)
            self._jobs[job_id] = replace(job, frames_total=progress.frames_total)  # not written: the runner repeats it

    async def _hold_folder(self) -> int:
        """Lock the folder as long as this process lives: two servers would remove each other's files."""
        while (handle := _try_lock(self._folder / _LOCK_FILE)) is None:
            if time.monotonic() - self._began_s > _LOCK_WITHIN_S:
                _log.warning("another server uses %s", self._folder)
                do = "Send the request to that server, or set another people.videos_folder in one of the two."
                raise ResourceExhaustedError("another server looks after the folder of video jobs", do=do)
            await asyncio.sleep(_RETRY_S)
        return handle

    def _take_over(self) -> None:
        for path in sorted(self._folder.glob(f"*/{_STATE_FILE}"), key=lambda path: path.stat().st_mtime):
            try:
                job = read_job(path)
            except (OSError, ValueError, TypeError, KeyError) as exc:
                _log.warning("%s is no video job and is left alone: %s", path, exc)
                continue
            self._jobs[job.job_id] = job
            self._bytes[job.job_id] = self._bytes_of(job)
            if not job.is_over:
                self._spawn(self._work(job.job_id, RESUME_AFTER_S))
        self._spawn(self._maintain())

    async def _work(self, job_id: str, after_s: float) -> None:
        await asyncio.sleep(after_s)
        async with self._slots:
            job = self._jobs.get(job_id)
            if job is None or job.is_over:
                return
            self._put(replace(job, state="running", stage="starting"))
            folder = self._folder / job_id
            kind: Any = ray.remote(VideoRunner).options(num_cpus=0, max_restarts=TRIES - 1, max_task_retries=TRIES - 1)
            self._running[job_id] = runner = kind.remote(str(folder), job_id, job.request)
            report = None
            error = None
            try:
                report = await runner.run.remote(self._self, self._options)
            except RayError as exc:
                error = explain_failure(exc, folder, job.request.name)
            del self._running[job_id]
            job = self._jobs.get(job_id)
            if job is None or job.state == "cancelled":  # None: cancelled, and then removed
                await asyncio.to_thread(_remove_files, folder)
                return
            frames = report["frames"] if report else job.frames_done
            job = replace(job, stage="", frames_done=frames, ended_s=time.time(), error=error, report=report)
            self._put(replace(job, state="failed" if error else "done"))
            await asyncio.to_thread(_remove_files, folder, keep="result" if report else "")
            if job_id in self._jobs:
                self._bytes[job_id] = self._bytes_of(self._jobs[job_id])
            with contextlib.suppress(OSError):  # maintenance tries it again, and logs it
                await self._keep_few()

    def _forget_silent_uploads(self) -> None:
        """Forget uploads whose replica died."""
        now_s = time.monotonic()
        self._uploads = {
            one: (size, heard_s) for one, (size, heard_s) in self._uploads.items() if now_s - heard_s < _SILENT_AFTER_S
        }

    def _bytes_of(self, job: VideoJob) -> int:
        """Return the bytes of a job's video, or of its result and record. A video not fetched yet counts in full."""
        name = "result" if job.is_over else SOURCE
        paths = list((self._folder / job.job_id).glob(f"{name}.*"))
        if paths:
            return sum(path.stat().st_size for path in paths)
        return self._options.max_video_bytes if job.request.uri and not job.is_over else 0

    async def _keep_few(self) -> None:
        """Remove the oldest finished jobs beyond the allowed number and bytes of results."""
        over = [job for job in self._jobs.values() if job.is_over]
        over.sort(key=lambda job: job.ended_s or 0.0, reverse=True)
        num_bytes = 0
        for index, job in enumerate(over):
            num_bytes += self._bytes.get(job.job_id, 0)
            if index and (index >= self._options.keep_videos or num_bytes > self._options.keep_videos_bytes):
                await self._forget(job.job_id)

    async def _maintain(self) -> None:
        """Forget jobs that were kept long enough, and exit when none is left. Retry what a failing disk refuses."""
        keep_s = self._options.keep_videos_s
        while True:
            now_s = time.time()
            try:
                await self._forget_old(now_s, keep_s)
                await self._keep_few()
            except OSError as exc:
                _log.warning("finished video jobs cannot be removed now: %s", exc)
            self._forget_silent_uploads()
            if not self._jobs and not self._uploads and time.monotonic() - self._used_s > min(_IDLE_EXIT_S, keep_s):
                ray.kill(self._self)
            await asyncio.sleep(min(_MAINTENANCE_S, keep_s))

    async def _forget_old(self, now_s: float, keep_s: float) -> None:
        for job in [job for job in self._jobs.values() if job.ended_s is not None and now_s - job.ended_s > keep_s]:
            try:
                await self._forget(job.job_id)
            except OSError as exc:  # the job stays, and is removed later
                _log.warning("finished video job %s cannot be removed now: %s", job.job_id, exc)
        for folder in [
            folder for folder in self._folder.glob("*/") if folder.name not in self._jobs and _is_orphan(folder, now_s)
        ]:
            await asyncio.to_thread(_remove, folder)

    async def _forget(self, job_id: str) -> None:
        await asyncio.to_thread(_remove, self._folder / job_id)
        self._jobs.pop(job_id, None)
        self._bytes.pop(job_id, None)

    def _put(self, job: VideoJob) -> None:
        """Write a job to its folder, then keep it here. If the disk is full, a known job is kept here only."""
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


def _try_lock(path: Path) -> int | None:
    """Lock a file as long as this process lives; None if another process has it."""
    handle = os.open(path, os.O_RDWR | os.O_CREAT, 0o600)
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        os.close(handle)
        return None
    except OSError as exc:
        _log.warning("%s cannot be locked (%s): make sure that only one server uses this folder", path, exc)
    return handle


def _is_orphan(folder: Path, now_s: float) -> bool:
    """Tell whether a folder was left by an upload whose replica died: it has no job, and is not written to any more."""
    try:
        changed_s = max(path.stat().st_mtime for path in (folder, *folder.iterdir()))
        return not (folder / _STATE_FILE).exists() and now_s - changed_s > _ORPHAN_AFTER_S
    except OSError:  # somebody removed it just now
        return False


def _remove_files(folder: Path, keep: str = "") -> None:
    """Remove the files of a job but its state, and but its result if that is to be kept."""
    for path in list(folder.glob("*")):
        if path.name != _STATE_FILE and not (keep and path.name.startswith(f"{keep}.") and path.is_file()):
            _remove(path)


def _remove(path: Path) -> None:
    if path.is_dir():
        shutil.rmtree(path, ignore_errors=True)
    else:
        with contextlib.suppress(FileNotFoundError):
            os.unlink(path)
