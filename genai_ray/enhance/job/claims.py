"""The outputs and work folders that one job alone may write: locked while it works on them; a second job is refused.

A job of one output locks it before anything else. A job of a folder lists its outputs in a file there: a second job
with one of them is refused at its start, and one with other outputs runs. A video on the local disk is also locked by
itself while its steps run.
"""

from __future__ import annotations

import hashlib
import os
import threading
import time
import uuid
from collections.abc import Iterable, Mapping
from contextlib import suppress

from genai_ray.enhance.job.results import RESULTS_NAME
from genai_ray.enhance.job.segment_store import remove_folder
from genai_ray.enhance.plan.clip_target import WORK_SUFFIX, ClipTarget, Targets
from genai_ray.errors import ConfigError, VideoError
from genai_ray.files import Lock, is_remote, join_place, list_names, read_lock, remove
from genai_ray.files.locks import DEAD_AFTER_S, RENEW_EVERY_S

__all__ = ["LOCK", "Claims"]

LOCK = "job.lock"
"""Name of the lock file in a work folder."""

_ENTRY_SUFFIX = ".job"
"""Suffix of the files in which jobs of a folder list their outputs."""

_ENTER_WITHIN_S = 10.0
"""Jobs list their outputs one after another; each takes well below a second."""

_RETRY_EVERY_S = 0.05


class Claims:
    """The outputs that this process has claimed; a thread renews the locks until they are released."""

    def __init__(self) -> None:
        self._locks: dict[str, list[Lock]] = {}
        self._common: list[Lock] = []
        self._folder: str | None = None
        self._lost: VideoError | None = None
        self._over = threading.Event()
        self._thread: threading.Thread | None = None

    def __enter__(self) -> Claims:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def take_all(self, targets: Targets) -> None:
        """List all outputs of a job of several videos; a job of one video needs no list.

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
        turn = _enter(join_place(self._folder, LOCK), targets.folder)
        try:
            for name in list_names(self._folder):
                if name.endswith(_ENTRY_SUFFIX):
                    _check_entry(join_place(self._folder, name), mine)
            place = join_place(self._folder, f"{uuid.uuid4().hex[:16]}{_ENTRY_SUFFIX}")
            self._common.append(Lock(place, f"folder {targets.folder}", {"outputs": sorted(mine)}))
        finally:
            turn.release()
        self._watch()

    def take(self, target: ClipTarget) -> None:
        """Lock the output and the work folder of a video, unless they are in a store where its job has listed it.

        Args:
            target: The video.

        Raises:
            ConfigError: If another job has one of them, or the output cannot be or must not be.
            VideoError: If they cannot be locked.
        """
        target.check_below()
        target.check_name()
        taken = self._locks[target.output] = []
        wanted = {target.aside: f"output {target.output}"}
        wanted.setdefault(target.work_dir, f"work folder {target.work_dir}")
        try:
            for folder, what in wanted.items():
                if self._folder is None or not is_remote(folder):
                    taken.append(Lock(join_place(folder, LOCK), what))
        except BaseException:
            self.release(target)
            raise
        self._watch()

    def release(self, target: ClipTarget) -> None:
        """Release a video, and remove its folders if they are empty.

        Args:
            target: The video.
        """
        _release(self._locks.pop(target.output, ()))

    def has(self, target: ClipTarget) -> bool:
        """Tell whether a video was taken and not released.

        Args:
            target: The video.

        Returns:
            Whether this job may write what belongs to it.
        """
        return target.output in self._locks

    def check(self) -> None:
        """Raise if a claim was lost.

        Raises:
            VideoError: If another job has taken one, because this process was silent for too long.
        """
        if self._lost is not None:
            raise self._lost

    def close(self) -> None:
        """Release everything."""
        self._over.set()
        if self._thread is not None:
            self._thread.join()
        _release(self._held())
        self._common = []
        self._locks = {}

    def _watch(self) -> None:
        if self._thread is None:
            self._thread = threading.Thread(target=self._renew, name="genai-ray-locks", daemon=True)
            self._thread.start()

    def _renew(self) -> None:
        while not self._over.wait(RENEW_EVERY_S):
            for lock in self._held():
                with suppress(VideoError):  # its store fails: the next round tries again
                    if not lock.renew() and lock in self._held() and not self._over.is_set():
                        self._lost = VideoError(
                            f"{lock.what} is not this job's any more: its lock {lock.place} was removed or taken",
                            do=f"A job that is silent for {DEAD_AFTER_S:.0f} s counts as dead. Run the same again.",
                        )

    def _held(self) -> Iterable[Lock]:
        return [*self._common, *(lock for locks in list(self._locks.values()) for lock in list(locks))]


def _check_entry(entry: str, mine: Mapping[str, str]) -> None:
    """Refuse outputs that another job of this folder has listed; remove the list of a dead job."""
    found = read_lock(entry)
    if found is None:
        return
    if not found.is_alive:
        remove([entry])
        return
    shared = sorted(mine[digest] for digest in found.facts.get("outputs", ()) if digest in mine)
    if shared:
        what = f"{len(shared)} outputs, such as {shared[0]}, are" if len(shared) > 1 else f"output {shared[0]} is"
        raise ConfigError(
            f"{what} in use by another job: {found.describe()}", do="Wait until it has ended, or choose another folder."
        )


def _release(locks: Iterable[Lock]) -> None:
    for lock in locks:
        lock.release()
        remove_folder(os.path.dirname(lock.place))


def _enter(place: str, folder: str) -> Lock:
    """Wait for the turn to list outputs in a folder."""
    deadline = time.monotonic() + _ENTER_WITHIN_S
    while True:
        try:
            return Lock(place, f"folder {folder}")
        except ConfigError:
            if time.monotonic() > deadline:
                raise
            time.sleep(_RETRY_EVERY_S)


def _digest(target: ClipTarget) -> str:
    place = target.place if is_remote(target.place) else os.path.realpath(target.place)
    return hashlib.blake2b(place.encode("utf-8", "surrogateescape"), digest_size=8).hexdigest()
