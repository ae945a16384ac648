"""Frame-exact video: plan, decode, encode, join. Only this package imports ``av``.

A video is planned first, from its packets alone: every presentation time in display order. Segments are ranges of that
plan; a worker decodes its range from the original file and checks the frames against the plan.

What all rooms know: ``container`` opens files and maps PyAV's errors; ``info`` describes a stream and builds its
decoder, with ``units`` (units of H.264 and HEVC); ``colour`` converts frames to RGB and back; ``codecs`` lists
encoders; ``track_options`` says what is asked of the tracks; ``timecode`` counts frames as editors do. The rooms, in
the order of data: ``reading`` (a video to frames), ``pictures`` (files of pictures), ``encoding`` (frames to the file
of a segment), ``joining`` (segments to the result), ``pipes`` (what cannot be planned). Each has a map. ``source``
plans and decodes whatever a job reads.
"""

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
from genai_ray.video.encoding.bounded import Budget, measure_part, open_writer
from genai_ray.video.encoding.encode import (
    SegmentWriter,
    choose_pixel_format,
    describe_losses,
    find_side_step,
    holds_alpha,
)
from genai_ray.video.encoding.encoder_checks import list_hardware, validate_encoding
from genai_ray.video.encoding.settings import Encoding
from genai_ray.video.info import LIMITED, Colour, HdrMetadata, VideoInfo, describe_video
from genai_ray.video.joining.budget import measure_least, measure_rest, weigh_segments
from genai_ray.video.joining.join import count_frames, join_segments
from genai_ray.video.joining.tracks import check_result
from genai_ray.video.pictures.frame_files import (
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
from genai_ray.video.pictures.param_pictures import (
    PICTURE_PARAM_SUFFIXES,
    decode_param_picture,
    is_picture_text,
    load_param_picture,
    parse_picture_text,
    to_picture_text,
)
from genai_ray.video.pictures.picture_writer import check_images, write_images
from genai_ray.video.pipes.pipe import PipeSink, PipeSource, open_pipe
from genai_ray.video.reading.decode import (
    DecodedFrame,
    StoredFrame,
    count_repeats,
    decode_frames,
    decode_segment,
    decode_stored,
)
from genai_ray.video.reading.deinterlace import CYCLE, KEPT, Deinterlacing
from genai_ray.video.reading.digest import compare_frames, digest_part, digest_ranges, read_record_name
from genai_ray.video.reading.plan import VideoPlan, plan_video
from genai_ray.video.reading.ranges import Segment, cut_segments
from genai_ray.video.reading.reader import VideoFrame, VideoFrames, VideoReader
from genai_ray.video.reading.telecine import check_deinterlacing
from genai_ray.video.source import (
    decode_small,
    decode_source,
    describe_source,
    is_picture,
    is_sequence,
    plan_source,
)
from genai_ray.video.timecode import DROP_RATES, Timecode, is_non_drop
from genai_ray.video.track_options import TrackOptions, parse_track_options

__all__ = [
    "ANIMATION_SUFFIXES",
    "CYCLE",
    "DROP_RATES",
    "IMAGE_SOURCE_SUFFIXES",
    "IMAGE_SUFFIXES",
    "KEPT",
    "LIMITED",
    "PICTURE_PARAM_SUFFIXES",
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
    "Timecode",
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
    "count_repeats",
    "cut_segments",
    "decode_frames",
    "decode_param_picture",
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
    "is_non_drop",
    "is_picture",
    "is_picture_text",
    "is_sequence",
    "join_segments",
    "list_hardware",
    "load_param_picture",
    "measure_least",
    "measure_part",
    "measure_rest",
    "open_pipe",
    "open_writer",
    "parse_picture_text",
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
    "to_picture_text",
    "validate_encoding",
    "weigh_segments",
    "write_images",
    "write_pictures",
]
