"""One segment of one video: decode, models, encode, with a bounded number of frames in flight; runs inside one Ray task.

* ``segment``: the whole pipeline. ``frames``: frames on their way through the chain of models. ``cancellation``: how a task learns that its job is over.
"""

__all__: list[str] = []
