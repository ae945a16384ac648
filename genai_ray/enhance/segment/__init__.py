"""One segment of one video, inside one Ray task.

* ``segment``: the whole pipeline (decode, models, encode), and how a task learns that its job is cancelled.
"""

__all__: list[str] = []
