"""One job of one or many videos, from its options to its report.

In the order of a job:

* ``job``: ``enhance_videos``. ``forecast``: what a job would do. ``claims``: the outputs that one job alone may write.
* ``scheduler``: which step of which video runs next; ``tasks``: the steps as Ray tasks; ``steps``: the steps as plain functions.
* ``clip_plan``: what is known of a video on its way. ``segment_store``: finished segments. ``publish``: segments become a result.
* ``records``, ``results``: finished videos, ``results.parquet``. ``progress``, ``report``: how far the job is, and what it reports at its end.
"""

__all__: list[str] = []
