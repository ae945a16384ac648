"""What the engine does to a video, without a model; and how near its pictures are to the source's, measured on YUV
itself."""

import av
import numpy as np

from genai_ray.video import SegmentWriter, decode_segment, join_segments, plan_video, scale_alpha, validate_encoding


def identity(source, output, encoding, *, segment_frames=16):
    """Plan, decode, encode, join; return the plan and the notes."""
    encoding = encoding.fit(output.suffix)
    plan = plan_video(source, segment_frames=segment_frames)
    has_alpha = plan.info.has_alpha and encoding.has_alpha
    validate_encoding(encoding, output.suffix, has_alpha=has_alpha)
    size, parts = (plan.info.width, plan.info.height), []
    for segment in plan.segments:
        parts.append(output.with_name(f"{output.name}.{segment.index}.nut"))
        with SegmentWriter(parts[-1], info=plan.info, size=size, encoding=encoding, has_alpha=has_alpha) as writer:
            for frame in decode_segment(plan, segment):
                writer.write(
                    np.concatenate([frame.frame, scale_alpha(frame.alpha, size)], axis=-1)
                    if has_alpha
                    else frame.frame,
                    frame.pts,
                )
    return plan, join_segments(plan, parts, [s.stop - s.start for s in plan.segments], output)


def decode(path, decoder=None):
    """Decode a whole file in one go, by PyAV alone; in display order."""
    with av.open(str(path)) as box:
        stream = next(s for s in box.streams.video if not s.disposition & av.stream.Disposition.attached_pic)
        context = av.CodecContext.create(decoder, "r") if decoder else stream.codec_context
        return [frame for packet in box.demux(stream) for frame in context.decode(packet)]


def planes(frame):
    """Return the planes of a planar picture as int64 arrays."""
    kind = np.uint16 if frame.format.components[0].bits > 8 else np.uint8
    return [np.frombuffer(memoryview(p), kind).reshape(p.height, -1)[:, : p.width].astype(int) for p in frame.planes]


def compare(before, after, colour):
    """Compare two pictures of one YUV format.

    Returns the share of pixels whose YUV is no RGB colour (their chroma interpolated, give or take the level that its
    rounding may be off by), the share of the other pixels whose luma differs, and the mean squared error of the chroma
    that no such pixel had a part in.
    """
    bits = before.format.components[0].bits
    (luma, *chroma), other = planes(before)[:3], planes(after)[:3]
    ways = [
        luma.shape[axis] // chroma[0].shape[axis] if chroma[0].shape[axis] < luma.shape[axis] else 1 for axis in (0, 1)
    ]
    cb, cr = (interpolate(plane, luma.shape, ways, colour.chroma_location) for plane in chroma)
    slack = int(ways != [1, 1])
    inside = np.logical_and.reduce(
        [is_rgb(luma, cb + b, cr + r, colour, bits) for b in (-slack, slack) for r in (-slack, slack)]
    )
    clean = inside[:: ways[0], :: ways[1]]
    for down in range(ways[0]):
        for right in range(ways[1]):
            part = inside[down :: ways[0], right :: ways[1]]
            clean = clean[: part.shape[0], : part.shape[1]] & part[: clean.shape[0], : clean.shape[1]]
    clean = neighbours(clean, 3).all(axis=0)
    errors = np.concatenate(
        [((a - b) ** 2)[: clean.shape[0], : clean.shape[1]][clean] for a, b in zip(chroma, other[1:], strict=True)]
    )
    differs = (luma != other[0])[inside].mean() if inside.any() else 0.0
    return 1 - inside.mean(), differs, errors.mean() if errors.size else 0.0


def is_rgb(luma, cb, cr, colour, bits):
    """Tell where YUV (in code values) is a colour of RGB."""
    full = colour.range == 2
    low, span, wide = (0, 2**bits - 1, 2**bits - 1) if full else (16 << bits - 8, 219 << bits - 8, 224 << bits - 8)
    red, blue = {1: (0.2126, 0.0722), 9: (0.2627, 0.0593)}.get(colour.matrix, (0.299, 0.114))
    y, b, r = (luma - low) / span, (cb - 2 ** (bits - 1)) / wide, (cr - 2 ** (bits - 1)) / wide
    rgb = [
        y + 2 * (1 - red) * r,
        y + 2 * (1 - blue) * b,
        y - 2 * (blue * (1 - blue) * b + red * (1 - red) * r) / (1 - red - blue),
    ]
    return (np.minimum.reduce(rgb) >= 0) & (np.maximum.reduce(rgb) <= 1)


def neighbours(plane, reach):
    padded = np.pad(plane, reach, mode="edge")
    return np.stack(
        [
            padded[y : y + plane.shape[0], x : x + plane.shape[1]]
            for y in range(2 * reach + 1)
            for x in range(2 * reach + 1)
        ]
    )


def interpolate(plane, shape, ways, location):
    """Bring chroma to luma's size by Lanczos' kernel of three lobes, from where it lies."""
    down, right = {
        "left": (0.5, 0),
        "center": (0.5, 0.5),
        "topleft": (0, 0),
        "top": (0, 0.5),
        "bottomleft": (1, 0),
        "bottom": (1, 0.5),
    }[location]
    across = lanczos(plane.shape[1], shape[1], ways[1], right)
    return lanczos(plane.shape[0], shape[0], ways[0], down) @ plane @ across.T


def lanczos(have, want, way, offset):
    """Return the matrix of interpolation from ``have`` samples to ``want``, where the first lies at ``offset`` between
    the first two wanted ones."""
    if way == 1:
        return np.eye(want, have)
    at = (np.arange(want) - offset) / way
    taps = np.floor(at)[:, None] + np.arange(-2, 4)
    weights = np.sinc(taps - at[:, None]) * np.sinc((taps - at[:, None]) / 3)
    matrix = np.zeros((want, have))
    np.add.at(
        matrix,
        (np.arange(want)[:, None], np.clip(taps, 0, have - 1).astype(int)),
        weights / weights.sum(axis=1, keepdims=True),
    )
    return matrix
