"""Frame-exact video: plan, decode, encode, join. Only this package imports ``av``.

A video is planned first, from its packets alone: every presentation time in display order. Segments are ranges of that
plan; a worker decodes its range from the original file and checks the frames against the plan. In the order of data:

``container`` opens files and maps PyAV's errors; ``info`` describes a stream and builds its decoder; ``plan`` makes the
plan, with ``packets`` (which packet is which frame), ``units`` (units of H.264 and HEVC) and ``truncation`` (is the end
of the file there). ``decode`` gives the frames of a segment, ``deinterlace`` and ``telecine`` filter interlaced ones,
``colour`` converts them to RGB and back. ``encode`` writes a segment with one of ``codecs`` or ``hardware``, which
``encoder_checks`` tries before; ``bounded`` writes one of at most so many bytes, and ``budget`` finds how many there
are for pictures. ``join`` writes the result. ``tracks`` adds everything beside the pictures as ``track_options`` ask
for it: it copies, or ``sound`` (of ``samples``) encodes and ``subtitles`` converts; ``excerpt`` cuts to a piece, and
``order`` keeps decode times ascending. ``pictures`` writes frames as files of their own. ``images`` reads and
writes files of pictures, ``animations`` and ``animation_writer`` files of several; ``source`` plans and decodes
whatever a job reads, and ``picture_writer`` writes results as pictures. ``reader`` gives users the frames of a video by
index or time. ``pipes`` reads and writes what cannot be planned: NUT, and ``y4m``. ``digest`` hashes decoded pictures,
and names a result's record in its metadata.
"""

from genai_ray.video.bounded import Budget, measure_part, open_writer
from genai_ray.video.budget import measure_least, measure_rest, weigh_segments
from genai_ray.video.codecs import (
    ANIMATION_SUFFIXES,
    IMAGE_SOURCE_SUFFIXES,
    IMAGE_SUFFIXES,
    PICTURE_SUFFIXES,
    SOURCE_SUFFIXES,
    SUFFIXES,
    TABLE_SUFFIX,
    predict_encoder_bytes,
)
from genai_ray.video.colour import resample, scale_alpha
from genai_ray.video.container import check_container, describe_libraries, read_timecode
from genai_ray.video.decode import DecodedFrame, StoredFrame, decode_frames, decode_segment, decode_stored
from genai_ray.video.deinterlace import CYCLE, KEPT, Deinterlacing
from genai_ray.video.digest import compare_frames, digest_part, digest_ranges, read_record_name
from genai_ray.video.encode import (
    Encoding,
    SegmentWriter,
    choose_pixel_format,
    describe_losses,
    find_side_step,
    holds_alpha,
)
from genai_ray.video.encoder_checks import list_hardware, validate_encoding
from genai_ray.video.info import LIMITED, Colour, HdrMetadata, VideoInfo, describe_video
from genai_ray.video.join import count_frames, join_segments
from genai_ray.video.picture_writer import check_images, write_images
from genai_ray.video.pictures import (
    decode_pixels,
    decode_png16,
    describe_leftovers,
    encode_pixels,
    encode_png,
    encode_png16,
    folder_of_pictures,
    read_picture,
    read_pictures,
    write_pictures,
)
from genai_ray.video.pipes import PipeSink, PipeSource, open_pipe
from genai_ray.video.plan import Segment, VideoPlan, cut_segments, plan_video
from genai_ray.video.reader import VideoFrame, VideoFrames, VideoReader
from genai_ray.video.source import decode_small, decode_source, describe_source, is_picture, is_sequence, plan_source
from genai_ray.video.telecine import check_deinterlacing
from genai_ray.video.track_options import TrackOptions, parse_track_options
from genai_ray.video.tracks import check_result

__all__ = [
    "ANIMATION_SUFFIXES",
    "CYCLE",
    "IMAGE_SOURCE_SUFFIXES",
    "IMAGE_SUFFIXES",
    "KEPT",
    "LIMITED",
    "PICTURE_SUFFIXES",
    "SOURCE_SUFFIXES",
    "SUFFIXES",
    "TABLE_SUFFIX",
    "Budget",
    "Colour",
    "DecodedFrame",
    "Deinterlacing",
    "Encoding",
    "HdrMetadata",
    "PipeSink",
    "PipeSource",
    "Segment",
    "SegmentWriter",
    "StoredFrame",
    "TrackOptions",
    "VideoFrame",
    "VideoFrames",
    "VideoInfo",
    "VideoPlan",
    "VideoReader",
    "check_container",
    "check_deinterlacing",
    "check_images",
    "check_result",
    "choose_pixel_format",
    "compare_frames",
    "count_frames",
    "cut_segments",
    "decode_frames",
    "decode_pixels",
    "decode_png16",
    "decode_segment",
    "decode_small",
    "decode_source",
    "decode_stored",
    "describe_leftovers",
    "describe_libraries",
    "describe_losses",
    "describe_source",
    "describe_video",
    "digest_part",
    "digest_ranges",
    "encode_pixels",
    "encode_png",
    "encode_png16",
    "find_side_step",
    "folder_of_pictures",
    "holds_alpha",
    "is_picture",
    "is_sequence",
    "join_segments",
    "list_hardware",
    "measure_least",
    "measure_part",
    "measure_rest",
    "open_pipe",
    "open_writer",
    "parse_track_options",
    "plan_source",
    "plan_video",
    "predict_encoder_bytes",
    "read_picture",
    "read_pictures",
    "read_record_name",
    "read_timecode",
    "resample",
    "scale_alpha",
    "validate_encoding",
    "weigh_segments",
    "write_images",
    "write_pictures",
]
