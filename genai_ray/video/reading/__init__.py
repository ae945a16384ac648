"""From a file to frames: the plan of a video, and the pictures of its segments.

* ``plan``: the plan, from one pass over the packets. ``packets``: which packet is which frame. ``ranges``: segments and
  pieces. ``truncation``: is the end of the file there.
* ``decode``: the frames of a segment. ``deinterlace`` and ``telecine``: filter interlaced ones.
* ``reader``: gives users the frames of a video by index or time.
* ``digest``: hashes decoded pictures, and names a result's record in its metadata.
"""

__all__: list[str] = []
