"""From segments to the result, with everything beside the pictures.

* ``join``: writes the result. ``order``: keeps its decode times ascending.
* ``tracks``: adds sound, subtitles, covers and attachments. ``excerpt``: cuts copies to a piece. ``sound`` (of
  ``samples``) encodes, ``subtitles`` converts. ``metadata``: what tracks say of themselves, and what a result loses.
* ``budget``: how many bytes there are for pictures beside all that.
"""

__all__: list[str] = []
