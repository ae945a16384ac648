"""The exceptions of genai_ray: one root, and leaves that are also the builtin a caller would already catch.

::

    GenAIRayError(Exception)
      ConfigError(ValueError)                an option or a file of options is wrong
      ModelNotFoundError(LookupError)        no such model id, alias or file
      ModelLoadError(RuntimeError)           corrupt, wrong sha256, unsupported operator
      BackendUnavailableError(RuntimeError)  asked for a runtime or device that is not there
      FrameNotFoundError(IndexError)         a video has no frame of this index or at this time
      InvalidInputError(ValueError)          frames of a wrong shape, dtype or range, or none
      InferenceError(RuntimeError)           the runtime failed on this input
      ResourceExhaustedError(MemoryError)    larger than any device, or no room
      TooManyRequestsError(RuntimeError)     more at the same time than are taken; later they are
      DeadlineExceededError(TimeoutError)    not done by the caller's deadline
      CacheClosedError(RuntimeError)         a handle used after ``shutdown()`` or ``close()``
      VideoError(RuntimeError)               not a video, truncated, no video stream
      QualityError(ValueError)               a quality check that cannot be made

Every error carries three fields: ``got`` (what was met), ``allowed`` (what would have been right) and ``do`` (what to do
about it). Fields travel to ``Exception.__init__`` and the text is made in ``__str__``, so that each class survives pickle.
The module does not map foreign exceptions: the gateway module of each library does that.
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
        got: What was met, naming the file, field or value.
        allowed: What would have been right; empty when nothing sensible can be said.
        do: What the caller can do about it; empty when nothing sensible can be said.
    """

    def __init__(self, got: str, allowed: str = "", do: str = "") -> None:
        got, allowed, do = (
            text.encode(errors="backslashreplace").decode() for text in (got, allowed, do)
        )  # Ray's workers die of text that is not UTF-8
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
    """No model of this id or alias is known, or its file is not there; ``do`` lists near names and where files are looked for."""


class ModelLoadError(GenAIRayError, RuntimeError):
    """A model file is there but cannot be used: corrupt, wrong sha256, unsupported operator, refused conversion."""


class BackendUnavailableError(GenAIRayError, RuntimeError):
    """A runtime, provider or device was asked for by name and is not there; there is never a silent fallback."""


class FrameNotFoundError(GenAIRayError, IndexError):
    """A video has no frame of this index, or shows none at this time."""


class InvalidInputError(GenAIRayError, ValueError):
    """Frames or tensors of a wrong shape, dtype or range, or none at all."""


class InferenceError(GenAIRayError, RuntimeError):
    """The runtime failed while it computed this input."""


class ResourceExhaustedError(GenAIRayError, MemoryError):
    """Larger than any device's budget, or no room that may be made."""


class TooManyRequestsError(GenAIRayError, RuntimeError):
    """More requests at the same time than are taken; the same one is taken later."""


class DeadlineExceededError(GenAIRayError, TimeoutError):
    """Not done by the caller's deadline."""


class CacheClosedError(GenAIRayError, RuntimeError):
    """A cache, or a session of it, was used after ``shutdown()``, or by a client after ``close()``."""


class VideoError(GenAIRayError, RuntimeError):
    """A file is not a video, is truncated or damaged, or has no video stream; ``got`` names the file."""


class QualityError(GenAIRayError, ValueError):
    """A quality check cannot be made, because reference and candidate do not fit each other."""
