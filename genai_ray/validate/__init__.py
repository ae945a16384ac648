"""Compares whole videos and pictures with a reference: ``validate_videos``.

``clips`` opens files and checks that they can be compared: times, sizes, bit depths. ``measure`` decodes them side by
side and measures every frame. The result is a ``genai_ray.quality.QualityReport``.

The frames of a clip are measured by threads of one process, not by Ray: decoding and the metrics run outside Python's
lock, and a second of video takes less time than Ray's start. VMAF decodes both files once more, and the worst frames
are decoded again at the end.
"""

from genai_ray.validate.measure import METRICS, validate_videos

__all__ = ["METRICS", "validate_videos"]
