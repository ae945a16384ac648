"""What is asked, and what follows from it. Nothing here knows Ray.

* ``options``: ``EnhanceOptions``, and the checks of models against them.
* ``clip_target``: ``ClipTarget``: one input with its output.
* ``piece``: the piece of a video that is asked for.
* ``size``: the size of the result that is asked for, and those of frames on their way.
* ``budget``: the bytes of each segment, if a bit rate or a size is asked for.
* ``timeline``: the order of a chain, and the times of the result's frames.
* ``cuts``: how cuts are found, across which no frame is added.
* ``background``: what replaces a background.
"""

__all__: list[str] = []
