"""Video jobs that are over go, also while a disk refuses to let one of them go."""

import asyncio
from types import SimpleNamespace

from genai_ray.serve.web import video_jobs


def test_a_job_that_cannot_be_removed_does_not_keep_others(tmp_path, monkeypatch):
    def remove(path):
        removed.append(path.name)
        if path.name == "a" and is_broken:
            raise OSError(5, "Input/output error")

    removed, is_broken = [], True
    monkeypatch.setattr(video_jobs, "_remove", remove)
    jobs = object.__new__(video_jobs.VideoJobs)  # its own constructor needs an actor
    jobs._folder, jobs._bytes = tmp_path, {}
    jobs._jobs = {name: SimpleNamespace(job_id=name, ended_s=0.0) for name in ("a", "b")}
    asyncio.run(jobs._forget_old(100.0, 1.0))
    assert (removed, list(jobs._jobs)) == (["a", "b"], ["a"])
    is_broken = False
    asyncio.run(jobs._forget_old(100.0, 1.0))
    assert jobs._jobs == {}
