"""What decoding to RGB and encoding without loss changes of real clips; goals: no luma, and 60 dB of chroma, wherever
YUV is a colour of RGB."""

import sys
import tempfile
from pathlib import Path

import numpy as np
from common import CLIPS, ROOT, keep

sys.path.insert(0, str(ROOT))

from genai_ray.video import Encoding
from tests.video.identity import compare, decode, identity

EVERY = 5
"""Frames of which one is compared."""


def main(*clips: Path) -> None:
    clips = clips or (*sorted((ROOT / "samples").glob("*.mp4")), *sorted(CLIPS.glob("*.m[pk][4v]")))
    figures, rows = {}, []
    for clip in clips:
        with tempfile.TemporaryDirectory() as folder:
            plan, _ = identity(clip, Path(folder, "b.mkv"), Encoding(codec="ffv1"))
            pairs = list(zip(decode(clip), decode(Path(folder, "b.mkv")), strict=True))[::EVERY]
        shares, differs, errors = zip(*(compare(a, b, plan.info.colour) for a, b in pairs), strict=True)
        peak = 2**plan.info.bit_depth - 1
        chroma_db = float(10 * np.log10(peak**2 / max(np.mean(errors), 1e-9)))
        figures[clip.name] = {
            "share_outside_rgb": float(np.mean(shares)),
            "luma_differs": float(max(differs)),
            "chroma_db": chroma_db,
        }
        rows.append(
            (clip.name, f"outside {np.mean(shares):.2%}, luma differs {max(differs):.2%}, chroma {chroma_db:.1f} dB")
        )
    keep("identity", {"clips": figures}, rows)


if __name__ == "__main__":
    main(*map(Path, sys.argv[1:]))
