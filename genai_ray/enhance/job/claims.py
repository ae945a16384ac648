"""What one job alone may write: its outputs and their work folders, locked while it is at them; a second job is refused at once.

A job of one output locks it before anything else. A job of a folder enters the outputs of all its videos there, so that a second job with one of
them is refused at its start, and one with others goes on; each video of the local disk is locked besides while it is on its way.
"""

from __future__ import annotations

import hashlib
import os
import threading
import time
import uuid
from collections.abc import Iterable
from contextlib import suppress
from types import TracebackType

from genai_ray.enhance.job.results import RESULTS_NAME
from genai_ray.enhance.job.segment_store import remove_folder
from genai_ray.enhance.plan.clip_target import WORK_SUFFIX, ClipTarget, Targets
from genai_ray.errors import ConfigError, VideoError
from genai_ray.files import Lock, is_remote, join_place, list_names, read_lock, remove
from genai_ray.files.locks import DEAD_AFTER_S, RENEW_EVERY_S

__all__ = ["LOCK", "Claims"]

LOCK = "job.lock"
"""In a work folder: who has it."""

_ENTRY_SUFFIX = ".job"
"""Of the files in which jobs of a folder enter their outputs."""

_ENTER_WITHIN_S = 10.0
"""Jobs enter their outputs one after another; each takes well below a second."""

_AGAIN_S = 0.05


class Claims:
    """The outputs that this process has, renewed by a thread until they are given back."""

    def __init__(self) -> None:
        self._locks: dict[str, list[Lock]] = {}
        self._common: list[Lock] = []
        self._folder: str | None = None
        self._lost: VideoError | None = None
        self._over = threading.Event()
        self._thread: threading.Thread | None = None

    def __enter__(self) -> Claims:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def take_all(self, targets: Targets) -> None:
        """Enter all outputs of a job of several videos; of one video nothing is to be entered.

        Args:
            targets: The videos.

        Raises:
            ConfigError: If another job of this folder has one of these outputs.
            VideoError: If the folder's store fails.
        """
        if targets.folder is None:
            return
        self._folder = join_place(targets.folder, f"{RESULTS_NAME}{WORK_SUFFIX}")
        mine = {_digest(target): target.output for target in targets}
        gate = _enter(join_place(self._folder, LOCK), targets.folder)
        try:
            for entry in [
                join_place(self._folder, name) for name in list_names(self._folder) if name.endswith(_ENTRY_SUFFIX)
            ]:
                found = read_lock(entry)
                if found is not None and not found.is_alive:
                    remove([entry])
                elif found is not None and (
                    shared := sorted(mine[digest] for digest in found.facts.get("outputs", ()) if digest in mine)
                ):
                    what = (
                        f"{len(shared)} outputs, such as {shared[0]}, are"
                        if len(shared) > 1
                        else f"output {shared[0]} is"
                    )
                    raise ConfigError(
                        f"{what} in use by another job: {found.describe()}",
                        do="Wait until it has ended, or choose another folder.",
                    )
            place = join_place(self._folder, f"{uuid.uuid4().hex[:16]}{_ENTRY_SUFFIX}")
            self._common.append(Lock(place, f"folder {targets.folder}", {"outputs": sorted(mine)}))
        finally:
            gate.release()
        self._watch()

    def take(self, target: ClipTarget) -> None:
        """Lock the output and the work folder of a video, as far as its job has not entered it in a store.

        Args:
            target: The video.

        Raises:
            ConfigError: If another job has one of them, or the output cannot be or must not be.
            VideoError: If they cannot be locked.
        """
        target.check_below()
        target.check_name()
        taken = self._locks[target.output] = []
        wanted = {target.aside: f"output {target.output}", target.work_dir: f"work folder {target.work_dir}"}
        if target.work_dir == target.aside:
            wanted = {target.aside: f"output {target.output}"}
        try:
            for folder, what in wanted.items():
                if self._folder is None or not is_remote(folder):
                    taken.append(Lock(join_place(folder, LOCK), what))
        except BaseException:
            self.release(target)
            raise
        self._watch()

    def release(self, target: ClipTarget) -> None:
        """Give a video back, and its folders where nothing is left in them.

        Args:
            target: The video.
        """
        for lock in self._locks.pop(target.output, ()):
            lock.release()
            remove_folder(os.path.dirname(lock.place))

    def has(self, target: ClipTarget) -> bool:
        """Tell whether a video was taken and not given back.

        Args:
            target: The video.

        Returns:
            Whether this job may write what belongs to it.
        """
        return target.output in self._locks

    def check(self) -> None:
        """Go on only while every claim holds.

        Raises:
            VideoError: If another job has taken one, because this process was silent for too long.
        """
        if self._lost is not None:
            raise self._lost

    def close(self) -> None:
        """Give everything back."""
        self._over.set()
        if self._thread is not None:
            self._thread.join()
        for lock in [*self._common, *(lock for locks in self._locks.values() for lock in locks)]:
            lock.release()
            remove_folder(os.path.dirname(lock.place))
        self._common, self._locks = [], {}

    def _watch(self) -> None:
        if self._thread is None:
            self._thread = threading.Thread(target=self._renew, name="genai-ray-locks", daemon=True)
            self._thread.start()

    def _renew(self) -> None:
        while not self._over.wait(RENEW_EVERY_S):
            for lock in self._held():
                with suppress(VideoError):  # its store fails: the next time will tell
                    if not lock.renew() and lock in self._held() and not self._over.is_set():
                        got = f"{lock.what} is not this job's any more: its lock {lock.place} was removed or taken"
                        self._lost = VideoError(
                            got, do=f"A job that is silent for {DEAD_AFTER_S:.0f} s counts as dead. Run the same again."
                        )

    def _held(self) -> Iterable[Lock]:
        return [*self._common, *(lock for locks in list(self._locks.values()) for lock in list(locks))]


def _enter(place: str, folder: str) -> Lock:
    """Wait for the turn to enter outputs in a folder."""
    deadline = time.monotonic() + _ENTER_WITHIN_S
    while True:
        try:
            return Lock(place, f"folder {folder}")
        except ConfigError:
            if time.monotonic() > deadline:
                raise
            time.sleep(_AGAIN_S)


def _digest(target: ClipTarget) -> str:
    place = target.place if is_remote(target.place) else os.path.realpath(target.place)
    return hashlib.blake2b(place.encode("utf-8", "surrogateescape"), digest_size=8).hexdigest()
