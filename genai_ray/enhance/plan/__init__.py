"""What is asked and what follows from it, before any frame is decoded. Nothing here knows Ray.

* ``options``: ``EnhanceOptions``. ``clip_target``: ``ClipTarget``: one input with its output.
* ``chain``: which models may follow each other. ``frame_rate``: the times of the output's frames. ``scenes``: cuts. ``background``: what replaces a background.
"""

__all__: list[str] = []
