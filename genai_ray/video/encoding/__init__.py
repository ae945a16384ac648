"""From frames to the file of a segment.

* ``settings``: what users ask for. ``encode``: writes a segment. ``bounded``: writes one of at most so many bytes.
* ``hardware``: encoders in hardware. ``encoder_checks``: tries an encoder and its settings before the job.
"""

__all__: list[str] = []
