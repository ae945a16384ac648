"""One job of one or many videos, from its options to its report, in the order of a job.

* ``pipe``: ``enhance_pipe``, from pipe to pipe, without the rest.
* ``job``: ``enhance_videos``. ``forecast``: what a job would do, with a ``trial`` on some frames.
* ``job_cache``: the cache of a job.
* ``claims``: the outputs that one job alone may write.
* ``scheduler``: which step of which video runs next, and the steps as Ray tasks.
* ``clip_plan``: ``ClipPlan``, what is planned for a video. ``steps``: begin, segments and end of a video as functions.
* ``segment_store``: finished segments in the work folder.
* ``clip_outcome``: ``ClipOutcome``, what became of a video. ``results``: ``results.parquet``.
* ``records``: the record of a result. ``verify``: ``verify_video``, with ``recompute`` for segments from the source.
* ``report``: how far a job is, and its report at the end.
"""

__all__: list[str] = []
