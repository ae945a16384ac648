"""``genai-ray enhance``."""

from __future__ import annotations

from typing import Annotated

import typer

from genai_ray.cli.choices import (
    AutoBackend,
    AutoPrecision,
    Check,
    Deinterlace,
    FieldOrder,
    Fit,
    Group,
    Manner,
    Preset,
    Task,
    choose_models,
    flag,
    load_profile,
    option,
    parse_devices,
    parse_pairs,
    parse_params,
    words,
)
from genai_ray.cli.job import run_job
from genai_ray.types import ModelBackend, ModelPrecision, SceneDetector, parse_bytes

__all__ = ["EXAMPLES", "enhance"]

EXAMPLES = """Make it larger, remove noise, brighten, add frames, blur the background, try 5 s, a folder, a picture:

genai-ray enhance in.mp4 -o out.mp4 -m websr-x2-l
genai-ray enhance in.mp4 -o out.mp4 -m ffdnet --param sigma=15
genai-ray enhance in.mp4 -o out.mp4 -m zero-dce
genai-ray enhance in.mp4 -o out.mp4 -m rife --fps 60
genai-ray enhance in.mp4 -o out.mp4 -m selfie-segmentation --background blur
genai-ray enhance in.mp4 -o out.mp4 -m websr-x2-l --preview
genai-ray enhance clips/ -o enhanced/ -m websr-x2-l
genai-ray enhance photo.jpg -o photo.png -m websr-x2-l"""
"""One command for each task, at the end of the help."""


def _print_help(context: typer.Context, wanted: bool) -> None:
    if wanted:
        print(context.get_help(), end="")
        raise typer.Exit


def enhance(
    inputs: Annotated[
        list[str],
        typer.Argument(
            help="Videos, pictures, folders, patterns or URIs; numbered pictures (f/%05d.png); or one manifest (.csv, "
            ".parquet); - for a pipe.",
            show_default=False,
        ),
    ],
    output: Annotated[
        str,
        option(
            "--output",
            "-o",
            group=Group.COMMON,
            help="A file ending in .mp4, .mkv, .mov, .webm, .gif, .png or others; a folder for several inputs. Folders "
            "are created; - for a pipe.",
            metavar="PLACE",
        ),
    ],
    model: Annotated[
        list[str] | None,
        option(
            "--model", "-m", group=Group.COMMON, help="Model id or .onnx file; repeat it for a chain.", metavar="ID"
        ),
    ] = None,
    preset: Annotated[
        Preset | None,
        option(group=Group.COMMON, help=f"Instead of --model: {words(Preset)}.", metavar="NAME"),
    ] = None,
    task: Annotated[
        Task | None,
        option(group=Group.COMMON, help=f"What --preset is for: {words(Task)}.", metavar="NAME", default="upscaling"),
    ] = None,
    param: Annotated[
        list[str] | None,
        option(group=Group.COMMON, help="A param of the model: sigma=15, style=@FILE.png.", metavar="NAME=VALUE"),
    ] = None,
    overwrite: Annotated[
        bool, flag("--overwrite", "-y", group=Group.COMMON, help="Replace an existing output.")
    ] = False,
    dry_run: Annotated[
        bool, flag("--dry-run", group=Group.COMMON, help="Print the plan and the expected time; write nothing.")
    ] = False,
    as_json: Annotated[bool, flag("--json", group=Group.COMMON, help="Print one line of JSON, not a table.")] = False,
    quiet: Annotated[bool, flag("--quiet", "-q", group=Group.COMMON, help="Print no progress and no table.")] = False,
    verbose: Annotated[
        bool, flag("--verbose", "-v", group=Group.COMMON, help="Also print notes about harmless findings.")
    ] = False,
    show_help: Annotated[
        bool,
        flag("--help", "-h", group=Group.COMMON, is_eager=True, callback=_print_help, help="Print this and end."),
    ] = False,
    start: Annotated[
        str | None,
        option(
            group=Group.TIME_AND_SIZE,
            help="Begin there: seconds, 1:30.5, or f250 for frame 250, counted from 0.",
            metavar="TIME",
        ),
    ] = None,
    end: Annotated[
        str | None, option(group=Group.TIME_AND_SIZE, help="End before that, as for --start.", metavar="TIME")
    ] = None,
    duration: Annotated[
        str | None,
        option(group=Group.TIME_AND_SIZE, help="Instead of --end: a length; f250 is 250 frames.", metavar="TIME"),
    ] = None,
    preview: Annotated[
        bool,
        flag(
            "--preview",
            group=Group.TIME_AND_SIZE,
            help="Only 5 s from the middle, into NAME.preview.mp4 for NAME.mp4.",
        ),
    ] = False,
    size: Annotated[
        str | None,
        option(group=Group.TIME_AND_SIZE, help="Size out, such as 1920x1080.", metavar="SIZE", default="by the model"),
    ] = None,
    height: Annotated[
        int | None, option(group=Group.TIME_AND_SIZE, help="Instead of --size: the height alone.", metavar="PIXELS")
    ] = None,
    width: Annotated[
        int | None, option(group=Group.TIME_AND_SIZE, help="Instead of --size: the width alone.", metavar="PIXELS")
    ] = None,
    scale: Annotated[
        str | None,
        option(group=Group.TIME_AND_SIZE, help="Instead of --size: times that of the input, such as 1.5.", metavar="X"),
    ] = None,
    fit: Annotated[
        Fit | None,
        option(
            group=Group.TIME_AND_SIZE,
            help=f"How another shape is put into --size: {words(Fit)}.",
            metavar="NAME",
            default="inside",
        ),
    ] = None,
    input_height: Annotated[
        int | None,
        option(
            group=Group.TIME_AND_SIZE,
            help="Reduce frames to this height before the first model.",
            metavar="PIXELS",
            default="as they are",
        ),
    ] = None,
    deinterlace: Annotated[
        Deinterlace,
        option(
            group=Group.TIME_AND_SIZE,
            help=f"Interlaced frames: {words(Deinterlace)}. auto makes one frame of each that is flagged, field two of "
            "every frame, ivtc four of five, of film.",
            metavar="NAME",
            default="auto",
        ),
    ] = Deinterlace.AUTO,
    field_order: Annotated[
        FieldOrder | None,
        option(
            group=Group.TIME_AND_SIZE,
            help=f"The field that is shown first: {words(FieldOrder)}.",
            metavar="NAME",
            default="as the video says",
        ),
    ] = None,
    factor: Annotated[
        int | None,
        option(
            group=Group.TIME_AND_SIZE,
            help="Frames out for each frame in, with an interpolation model.",
            metavar="N",
            default="2",
        ),
    ] = None,
    fps: Annotated[
        str | None,
        option(
            group=Group.TIME_AND_SIZE,
            help="Frames per second out, instead of --factor, such as 60 or 60000/1001; of numbered pictures, in.",
            metavar="RATE",
        ),
    ] = None,
    slow_motion: Annotated[
        int | None,
        option(
            group=Group.TIME_AND_SIZE,
            help="Instead of --factor: N times as long at the same rate, such as 4; sound only with --audio stretch.",
            metavar="N",
        ),
    ] = None,
    scene_detector: Annotated[
        SceneDetector,
        option(
            group=Group.TIME_AND_SIZE,
            help=f"Finds cuts, across which no frame is added: {words(SceneDetector)}.",
            metavar="NAME",
            default="auto",
        ),
    ] = SceneDetector.AUTO,
    scene_threshold: Annotated[
        float | None,
        option(
            group=Group.TIME_AND_SIZE,
            help="A scene is cut between frames less similar than this; 0 for never.",
            metavar="X",
            default="0.3, or as --scene-detector finds",
        ),
    ] = None,
    tile_size: Annotated[
        int | None,
        option(
            group=Group.TIME_AND_SIZE,
            help="Longest side of a tile in pixels; 0 for never.",
            metavar="PIXELS",
            default="automatic",
        ),
    ] = None,
    background: Annotated[
        str | None,
        option(
            group=Group.MODEL,
            help="With a background model: alpha, blur, blur:RADIUS, mask or #RRGGBB.",
            metavar="KIND",
            default="#00b140",
        ),
    ] = None,
    backend: Annotated[
        AutoBackend | None,
        option(group=Group.MODEL, help=f"Runs the model: {words(AutoBackend)}.", metavar="NAME", default="onnx"),
    ] = None,
    precision: Annotated[
        AutoPrecision | None,
        option(
            group=Group.MODEL,
            help=f"Number format: {words(AutoPrecision)}; auto needs --backend auto.",
            metavar="NAME",
            default="fp32",
        ),
    ] = None,
    min_quality_db: Annotated[
        float | None,
        option(
            group=Group.MODEL,
            help="With --backend auto: least PSNR from FP32 in ONNX Runtime, 40 to 120 dB.",
            metavar="DB",
            default="40",
        ),
    ] = None,
    device: Annotated[
        str, option(group=Group.MODEL, help="Device: auto, cpu or cuda.", metavar="NAME", default="auto")
    ] = "auto",
    check: Annotated[
        Check,
        option(
            group=Group.MODEL,
            help=f"Compare frames with the source: {words(Check)}. Wrong ones are computed again in fp32; strict also "
            "writes a record.",
            metavar="LEVEL",
            default="default",
        ),
    ] = Check.DEFAULT,
    codec: Annotated[
        str | None,
        option(
            group=Group.ENCODING,
            help="h264 (libx264), hevc or h265 (libx265), av1 (libsvtav1), vp9 (libvpx-vp9), prores (prores_ks), ffv1; "
            "png or mjpeg for frames; in hardware h264_, hevc_ or av1_ with nvenc, qsv, amf, vaapi or videotoolbox, "
            "whose bytes may differ from run to run.",
            metavar="NAME",
            default="by suffix, else h264",
        ),
    ] = None,
    encoder_preset: Annotated[
        str | None,
        option(
            group=Group.ENCODING,
            help="The encoder's own preset, such as ultrafast.",
            metavar="NAME",
            default="the encoder's, medium for h264",
        ),
    ] = None,
    crf: Annotated[
        float | None,
        option(group=Group.ENCODING, help="Constant rate factor.", metavar="X", default="the encoder's, 18 for h264"),
    ] = None,
    video_bitrate: Annotated[
        str | None,
        option(group=Group.ENCODING, help="Instead of --crf: bits per second on average: 4M, 4000k.", metavar="RATE"),
    ] = None,
    max_size: Annotated[
        str | None,
        option(group=Group.ENCODING, help="Instead of --crf: bytes of the result, 95 to 100 %: 500MB.", metavar="SIZE"),
    ] = None,
    image_quality: Annotated[
        int | None,
        option(group=Group.ENCODING, help="Of JPEG and WebP pictures, from 1 to 100.", metavar="N", default="92"),
    ] = None,
    bit_depth: Annotated[
        int | None, option(group=Group.ENCODING, help="8 or 10.", metavar="BITS", default="as the source")
    ] = None,
    encoder_option: Annotated[
        list[str] | None,
        option(group=Group.ENCODING, help="An option of the encoder, such as tune=film.", metavar="NAME=VALUE"),
    ] = None,
    threads: Annotated[
        int | None, option(group=Group.ENCODING, help="Encoder threads of one segment.", metavar="N", default="1")
    ] = None,
    audio: Annotated[
        str,
        option(
            group=Group.ENCODING,
            help="Sound: auto copies what the output can hold and encodes the rest; copy, none, aac, ac3, alac, flac, "
            "mp3, opus, pcm_s16le or pcm_s24le; stretch for --slow-motion.",
            metavar="NAME",
            default="auto",
        ),
    ] = "auto",
    subtitles: Annotated[
        str,
        option(
            group=Group.ENCODING,
            help="Subtitles: auto copies what the output can hold and converts text; copy or none.",
            metavar="NAME",
            default="auto",
        ),
    ] = "auto",
    streams: Annotated[
        str | None,
        option(
            group=Group.ENCODING,
            help="Sound and subtitles to keep: numbers of streams, audio, subtitles:0, audio:eng or eng, with commas.",
            metavar="LIST",
            default="all",
        ),
    ] = None,
    devices: Annotated[
        str, option(group=Group.CLUSTER, help="Devices that each model is loaded on, or all.", metavar="N", default="1")
    ] = "1",
    device_kind: Annotated[
        str | None,
        option(group=Group.CLUSTER, help="Kinds of devices, such as L4,A10.", metavar="KINDS", default="any"),
    ] = None,
    max_memory: Annotated[
        str | None,
        option(
            group=Group.CLUSTER, help="Budget of a new model cache: 2GB, 512MiB.", metavar="SIZE", default="automatic"
        ),
    ] = None,
    cache: Annotated[
        str, option(group=Group.CLUSTER, help="Name of the model cache.", metavar="NAME", default="default")
    ] = "default",
    address: Annotated[
        str | None,
        option(
            group=Group.CLUSTER,
            help="Ray cluster to join.",
            metavar="HOST:PORT",
            default="RAY_ADDRESS, or Ray on this machine",
        ),
    ] = None,
    name: Annotated[
        str,
        option(
            group=Group.ADVANCED,
            help="Names in an output folder, of {folder}, {stem}, {suffix} and {index}.",
            metavar="TEMPLATE",
            default="{folder}{stem}{suffix}",
        ),
    ] = "{folder}{stem}{suffix}",
    fail_fast: Annotated[
        bool, flag("--fail-fast", group=Group.ADVANCED, help="End the job at the first video that fails.")
    ] = False,
    max_failures: Annotated[
        int,
        option(
            min=0,
            group=Group.ADVANCED,
            help="Videos that may fail before the exit code is 1.",
            metavar="N",
            default="0",
        ),
    ] = 0,
    profile: Annotated[
        str | None,
        option(
            group=Group.ADVANCED,
            help="Options from laptop, cpu-server, gpu-node, cluster or a YAML file.",
            metavar="NAME",
        ),
    ] = None,
    work_dir: Annotated[
        str | None,
        option(
            group=Group.ADVANCED,
            help="Folder or URI of finished segments.",
            metavar="PLACE",
            default="OUTPUT.genai-ray",
        ),
    ] = None,
    batch_size: Annotated[
        int | None,
        option(group=Group.ADVANCED, help="Frames handed to a session at a time.", metavar="N", default="8"),
    ] = None,
    segment_frames: Annotated[
        int | None, option(group=Group.ADVANCED, help="Most frames in a segment.", metavar="N", default="128")
    ] = None,
    allow_truncated: Annotated[
        bool,
        flag("--allow-truncated", group=Group.ADVANCED, help="Enhance the part of a truncated file that is there."),
    ] = False,
    any_format: Annotated[
        bool,
        flag("--any-format", group=Group.ADVANCED, help="Also read files that name others, such as playlists."),
    ] = False,
) -> None:
    """Enhance videos or pictures with a model or a chain of models; sound, subtitles, times and colours are kept."""
    from genai_ray.enhance import Encoding, EnhanceOptions, parse_background, parse_rate

    models, base = choose_models(model, preset, task), load_profile(profile)
    options = EnhanceOptions(
        backend=ModelBackend(backend) if backend else base.backend,
        precision=ModelPrecision(precision) if precision else base.precision,
        min_quality_db=min_quality_db,
        device=device,
        replicas=parse_devices(devices),
        device_kinds=tuple(word.strip() for word in device_kind.split(",")) if device_kind else (),
        params=parse_params(param, "--param"),
        background=parse_background(background) if background is not None else None,
        start=start,
        end=end,
        duration=duration,
        preview=preview,
        audio=audio,
        subtitles=subtitles,
        streams=streams,
        size=size,
        width=width,
        height=height,
        scale=scale,
        fit=fit,
        input_height=input_height,
        deinterlace=deinterlace,
        field_order=field_order,
        check=check,
        factor=factor,
        fps=parse_rate(fps) if fps is not None else None,
        slow_motion=slow_motion,
        scene_detector=scene_detector,
        scene_threshold=scene_threshold,
        encoding=Encoding(
            codec=codec,
            preset=encoder_preset,
            crf=crf,
            video_bitrate=video_bitrate,
            max_size=max_size,
            image_quality=image_quality,
            threads=threads if threads is not None else base.threads,
            bit_depth=bit_depth,
            options=parse_pairs(encoder_option, str, "--encoder-option", "NAME=VALUE, such as tune=film"),
        ),
        tile_size_px=tile_size,
        address=address,
        overwrite=overwrite,
        allow_truncated=allow_truncated,
        any_format=any_format,
        work_dir=work_dir,
        name=name,
        fail_fast=fail_fast,
        batch_size=batch_size if batch_size is not None else base.batch_size,
        segment_frames=segment_frames if segment_frames is not None else base.segment_frames,
        max_memory_bytes=parse_bytes(max_memory, "--max-memory") if max_memory is not None else base.max_memory_bytes,
        cache_name=cache,
    )
    manner = Manner(as_json=as_json, is_quiet=quiet, is_verbose=verbose, is_dry_run=dry_run)
    if run_job(inputs, output, models, options, manner) > max_failures:
        raise typer.Exit(1)
