"""Video, exactly: plan, decode, encode, join. The only importer of ``av``.

A video is planned first, from its packets alone: every presentation time in display order. Segments are ranges of that
plan; a worker decodes its range from the original file, and what it gets is held against the plan.
"""

from genai_ray.video.codecs import (
    IMAGE_SUFFIXES,
    PICTURE_SUFFIXES,
    SOURCE_SUFFIXES,
    SUFFIXES,
    TABLE_SUFFIX,
    predict_encoder_bytes,
)
from genai_ray.video.colour import scale_alpha
from genai_ray.video.container import check_container
from genai_ray.video.decode import DecodedFrame, decode_frames, decode_segment
from genai_ray.video.encode import Encoding, SegmentWriter, choose_pixel_format, describe_losses, validate_encoding
from genai_ray.video.info import Colour, HdrMetadata, VideoInfo, describe_video
from genai_ray.video.join import count_frames, join_segments
from genai_ray.video.pictures import describe_leftovers, folder_of_pictures, read_pictures, write_pictures
from genai_ray.video.plan import Segment, VideoPlan, plan_video
from genai_ray.video.reader import VideoFrame, VideoFrames, VideoReader
from genai_ray.video.still import decode_png16, encode_png16
from genai_ray.video.tracks import check_result

__all__ = [
    "IMAGE_SUFFIXES",
    "PICTURE_SUFFIXES",
    "SOURCE_SUFFIXES",
    "SUFFIXES",
    "TABLE_SUFFIX",
    "Colour",
    "DecodedFrame",
    "Encoding",
    "HdrMetadata",
    "Segment",
    "SegmentWriter",
    "VideoFrame",
    "VideoFrames",
    "VideoInfo",
    "VideoPlan",
    "VideoReader",
    "check_container",
    "check_result",
    "choose_pixel_format",
    "count_frames",
    "decode_frames",
    "decode_png16",
    "decode_segment",
    "describe_leftovers",
    "describe_losses",
    "describe_video",
    "encode_png16",
    "folder_of_pictures",
    "join_segments",
    "plan_video",
    "predict_encoder_bytes",
    "read_pictures",
    "scale_alpha",
    "validate_encoding",
    "write_pictures",
]
