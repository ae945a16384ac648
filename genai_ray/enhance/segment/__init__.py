"""One segment of one video, inside one Ray task.

* ``segment``: the whole pipeline (decode, models, encode). ``cancellation``: how it learns that its job is over.
* ``chain``: frames through the models.
* ``needs``: what it needs before it is made. ``resize``: brings frames to their planned sizes.
* ``checks``: compares its frames with those of the source.
"""

__all__: list[str] = []
