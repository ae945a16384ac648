"""Compares whole videos and pictures with a reference: ``validate_videos``.

``clips`` opens files and checks that they can be compared: times, sizes, bit depths. ``measure`` decodes them side by
side and measures every frame. The result is a ``genai_ray.quality.QualityReport``.

The frames of a clip are measured by threads of one process, not by Ray: decoding and the metrics run outside Python's
lock, one thread decodes enough for more cores than most machines have, and many clips take less time than Ray's start.
The worst frames are decoded again at the end.
"""

from genai_ray.validate.measure import METRICS, validate_videos

__all__ = ["METRICS", "validate_videos"]
