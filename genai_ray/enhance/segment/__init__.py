"""One segment of one video, inside one Ray task.

* ``segment``: the whole pipeline (decode, models, encode). ``cancellation``: how it learns that its job is over.
* ``checks``: compares its frames with those of the source.
"""

__all__: list[str] = []
