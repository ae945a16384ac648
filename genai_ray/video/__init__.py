"""Video, exactly: plan, decode, encode, join. The only importer of ``av``.

A video is planned first, from its packets alone: every presentation time in display order. Segments are ranges of that
plan; a worker decodes its range from the original file, and what it gets is held against the plan.
"""

from genai_ray.video.codecs import SUFFIXES
from genai_ray.video.decode import DecodedFrame, decode_segment
from genai_ray.video.encode import Encoding, SegmentWriter, choose_pixel_format, validate_encoding
from genai_ray.video.join import join_segments
from genai_ray.video.plan import Colour, Segment, VideoInfo, VideoPlan, plan_video

__all__ = [
    "SUFFIXES",
    "Colour",
    "DecodedFrame",
    "Encoding",
    "Segment",
    "SegmentWriter",
    "VideoInfo",
    "VideoPlan",
    "choose_pixel_format",
    "decode_segment",
    "join_segments",
    "plan_video",
    "validate_encoding",
]
