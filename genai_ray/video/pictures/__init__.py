"""Files of pictures: read as a source, and written as a result.

* ``images``: files of one picture. ``animations``: files of several, read; ``animation_writer``: written.
* ``picture_writer``: writes results as pictures. ``frame_files``: frames of a video as files of their own.
* ``param_pictures``: pictures as extra inputs of models.
"""

__all__: list[str] = []
