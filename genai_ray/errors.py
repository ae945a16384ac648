"""The exceptions of genai_ray: one root, and leaves that are also the builtin a caller would already catch.

::

    GenAIRayError(Exception)
      ConfigError(ValueError)                an option or a file of options is wrong
      ModelNotFoundError(LookupError)        no such model id, alias or file
      ModelLoadError(RuntimeError)           corrupt, wrong sha256, unsupported operator
      BackendUnavailableError(RuntimeError)  the requested runtime or device is not available
      FrameNotFoundError(IndexError)         a video has no frame of this index or at this time
      InvalidInputError(ValueError)          frames of a wrong shape, dtype or range, or none
      InferenceError(RuntimeError)           the runtime failed on this input
      ResourceExhaustedError(MemoryError)    larger than any device, or no free memory
      TooManyRequestsError(RuntimeError)     too many requests at the same time; try again later
      DeadlineExceededError(TimeoutError)    not done by the caller's deadline
      CacheClosedError(RuntimeError)         a handle used after ``shutdown()`` or ``close()``
      VideoError(RuntimeError)               not a video, truncated, no video stream
      QualityError(ValueError)               frames that fail a check, or a check that is not possible

Every error has three fields: ``got`` (what is wrong), ``allowed`` (what is allowed) and ``do`` (what the caller can
do). All fields go to ``Exception.__init__`` and ``__str__`` makes the text, so that each class survives pickle. This
module does not map foreign exceptions: the gateway module of each library does that.
"""

from __future__ import annotations

__all__ = [
    "BackendUnavailableError",
    "CacheClosedError",
    "ConfigError",
    "DeadlineExceededError",
    "FrameNotFoundError",
    "GenAIRayError",
    "InferenceError",
    "InvalidInputError",
    "ModelLoadError",
    "ModelNotFoundError",
    "QualityError",
    "ResourceExhaustedError",
    "TooManyRequestsError",
    "VideoError",
]


class GenAIRayError(Exception):
    """Root of every error that genai_ray raises on purpose.

    Args:
        got: What is wrong, with the file, field or value.
        allowed: What is allowed; may be empty.
        do: What the caller can do; may be empty.
    """

    def __init__(self, got: str, allowed: str = "", do: str = "") -> None:
        # Ray's workers die of text that is not valid UTF-8.
        got, allowed, do = (text.encode(errors="backslashreplace").decode() for text in (got, allowed, do))
        super().__init__(got, allowed, do)
        self.got = got
        self.allowed = allowed
        self.do = do

    def __str__(self) -> str:
        text = self.got
        if self.allowed:
            text += f"; allowed: {self.allowed}"
        if self.do:
            text += f". {self.do}"
        return text


class ConfigError(GenAIRayError, ValueError):
    """An option, or a file of options, is wrong."""


class ModelNotFoundError(GenAIRayError, LookupError):
    """No model has this id or alias, or its file is missing; ``do`` has similar names and the searched folders."""


class ModelLoadError(GenAIRayError, RuntimeError):
    """A model file cannot be used: corrupt, wrong sha256, unsupported operator, refused conversion."""


class BackendUnavailableError(GenAIRayError, RuntimeError):
    """A requested runtime, provider or device is not available; there is never a silent fallback."""


class FrameNotFoundError(GenAIRayError, IndexError):
    """A video has no frame of this index, or shows none at this time."""


class InvalidInputError(GenAIRayError, ValueError):
    """Frames or tensors of a wrong shape, dtype or range, or none at all."""


class InferenceError(GenAIRayError, RuntimeError):
    """The runtime failed while it computed this input."""


class ResourceExhaustedError(GenAIRayError, MemoryError):
    """Larger than any device's budget, or no memory can be freed."""


class TooManyRequestsError(GenAIRayError, RuntimeError):
    """Too many requests at the same time; the same request may succeed later."""


class DeadlineExceededError(GenAIRayError, TimeoutError):
    """Not done by the caller's deadline."""


class CacheClosedError(GenAIRayError, RuntimeError):
    """A cache, or a session of it, was used after ``shutdown()``, or by a client after ``close()``."""


class VideoError(GenAIRayError, RuntimeError):
    """A file is not a video, is truncated or damaged, or has no video stream; ``got`` names the file."""


class QualityError(GenAIRayError, ValueError):
    """Frames fail the checks of ``enhance``; or a check is impossible, as reference and candidate do not match."""
