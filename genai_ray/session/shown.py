"""How a session shows itself in a notebook."""

from __future__ import annotations

from typing import Any, Protocol

import numpy as np

from genai_ray.display import draw_pictures, format_bytes, to_html
from genai_ray.errors import InvalidInputError
from genai_ray.types import Frames, Params

__all__ = ["Shown"]


class _Session(Protocol):
    def infer(self, frames: Frames, params: Params | None = None) -> Frames: ...

    def status(self) -> dict[str, Any]: ...


class Shown:
    """A figure, and a table for notebooks, of whatever has ``infer`` and ``status``."""

    def compare(self: _Session, frame: Frames, params: Params | None = None) -> Any:
        """Draw a frame before and after.

        Args:
            frame: One frame (H, W, 3), RGB, uint8, uint16 or float32 in [0, 1].
            params: Extra inputs of the model by name.

        Returns:
            A matplotlib ``Figure`` of two pictures of one size.

        Raises:
            InvalidInputError: If it is not one frame, or the model takes no single frames.
            BackendUnavailableError: If matplotlib is not installed.
            InferenceError: If the runtime fails or the session is closed.
        """
        if np.ndim(frame) != 3:
            raise InvalidInputError(f"frames of shape {np.shape(frame)} to compare", "one frame (H, W, 3)")
        after = self.infer(frame, params)
        titles = (f"before, {frame.shape[1]}x{frame.shape[0]}", f"after, {after.shape[1]}x{after.shape[0]}")
        return draw_pictures(dict(zip(titles, (frame, after), strict=True)), columns=2)

    def _repr_html_(self: _Session) -> str:
        status = self.status()
        return to_html(
            repr(self), [(name, _say(name, value)) for name, value in status.items() if value not in (None, [], "")]
        )


def _say(name: str, value: Any) -> Any:
    """Return a value of ``status()`` as people read it."""
    if name.endswith("_bytes"):
        return format_bytes(value)
    return f"{value:.4g}" if isinstance(value, float) else value
