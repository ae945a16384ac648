"""How objects show themselves to people: in a notebook, in ``help`` and in words."""

from __future__ import annotations

import ast
import html
import inspect
import io
import textwrap
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from itertools import pairwise
from typing import Any, TypeVar, cast

import numpy as np
import numpy.typing as npt

from genai_ray.errors import BackendUnavailableError, InvalidInputError

__all__ = ["describe_fields", "draw_pictures", "format_array", "format_bytes", "format_count", "new_figure", "to_html"]

WIDTH_IN = 12.0
"""Width of a figure in inches."""
_UNITS = ("B", "kB", "MB", "GB", "TB")

Class = TypeVar("Class", bound=type)


def describe_fields(owner: Class) -> Class:
    """Add to the docstring of a class what stands below its fields: ``help`` shows only docstrings.

    Args:
        owner: A dataclass, or a model of pydantic. Its source is read when somebody asks for its docstring.

    Returns:
        The class.
    """
    owner.__doc__ = cast(str, _Docstring(owner.__doc__))
    return owner


class _Docstring:
    """The docstring of a class, with its fields."""

    def __init__(self, text: str | None) -> None:
        self._text = inspect.cleandoc(text or "")
        self._is_whole = False

    def __get__(self, _: object, owner: type) -> str:
        if not self._is_whole:
            with suppress(OSError):  # an installation without sources
                bases = [base for base in reversed(owner.__mro__) if base.__module__.startswith("genai_ray.")]
                lines = [line for base in bases for line in _describe_fields_of(base)]
                self._text = "\n".join([self._text, "", "Attributes:", *lines])
            self._is_whole = True
        return self._text


def _describe_fields_of(owner: type) -> Iterator[str]:
    (found,) = ast.parse(textwrap.dedent(inspect.getsource(owner))).body
    for field, below in pairwise(cast(ast.ClassDef, found).body):
        if not (isinstance(field, ast.AnnAssign) and isinstance(field.target, ast.Name)):
            continue
        if isinstance(below, ast.Expr) and isinstance(below.value, ast.Constant) and field.target.id[0] != "_":
            first, *more = inspect.cleandoc(str(below.value.value)).splitlines()
            yield f"    {field.target.id}: {first}"
            yield from (f"        {line}" for line in more)


def format_array(array: npt.NDArray[Any]) -> str:
    """Describe an array for people.

    Args:
        array: Any array.

    Returns:
        Its shape and dtype, such as ``(720, 1280, 3) uint8``.
    """
    return f"{array.shape} {array.dtype}"


def format_bytes(num_bytes: float) -> str:
    """Format bytes for people.

    Args:
        num_bytes: How many.

    Returns:
        Three digits and a decimal unit, such as ``1.25 GB``.
    """
    power = 0
    while abs(num_bytes) >= 999.5 and power < len(_UNITS) - 1:
        num_bytes, power = num_bytes / 1000, power + 1
    return f"{num_bytes:.3g} {_UNITS[power]}"


def format_count(count: int, noun: str) -> str:
    """Format a number of things for people.

    Args:
        count: How many.
        noun: One of them.

    Returns:
        Such as ``1 frame`` or ``12 frames``.
    """
    return f"{count} {noun}" if count == 1 else f"{count} {noun}s"


def to_html(title: str, rows: Iterable[Sequence[object]], header: Sequence[str] = ()) -> str:
    """Make a table.

    Args:
        title: What it is of.
        rows: Its rows, from values of any type.
        header: Names of its columns; none for a table of names and values.

    Returns:
        HTML, escaped.
    """

    def line(cells: Sequence[object], tag: str) -> str:
        return "<tr>" + "".join(f"<{tag}>{html.escape(str(cell))}</{tag}>" for cell in cells) + "</tr>"

    head = line(header, "th") if header else ""
    return f"<table><caption>{html.escape(title)}</caption>{head}{''.join(line(row, 'td') for row in rows)}</table>"


def new_figure(width_in: float, height_in: float) -> Any:
    """Make an empty figure that a notebook shows, whether or not pyplot is imported.

    Args:
        width_in: Its width in inches.
        height_in: Its height in inches.

    Returns:
        A matplotlib ``Figure``.

    Raises:
        BackendUnavailableError: If matplotlib is not installed.
    """
    try:
        from matplotlib.figure import Figure as Base  # noqa: PLC0415  an extra
    except ImportError as exc:
        do = "Install it with: pip install matplotlib"
        raise BackendUnavailableError("matplotlib is not installed", "the extra 'notebooks'", do) from exc

    class Figure(Base):
        def _repr_png_(self) -> bytes:
            file = io.BytesIO()
            self.savefig(file, format="png")
            return file.getvalue()

    return Figure(figsize=(width_in, height_in), layout="constrained")


def draw_pictures(pictures: Mapping[str, npt.NDArray[Any]], *, columns: int = 4) -> Any:
    """Draw pictures beside each other.

    Args:
        pictures: RGB (H, W, 3) or masks (H, W, 1) by title, uint8, uint16 or float32 in [0, 1].
        columns: Most pictures in a row.

    Returns:
        A matplotlib ``Figure``.

    Raises:
        InvalidInputError: If there is no picture, or one has another shape or dtype.
        BackendUnavailableError: If matplotlib is not installed.
    """
    if not pictures:
        raise InvalidInputError("no picture to show", "at least one")
    eight_bits = [_to_uint8(picture) for picture in pictures.values()]
    columns = min(columns, len(pictures))
    rows = -(-len(pictures) // columns)
    height, width = eight_bits[0].shape[:2]
    figure = new_figure(WIDTH_IN, rows * (WIDTH_IN / columns * height / width + 0.4))
    panels = figure.subplots(rows, columns, squeeze=False).flat
    for panel in panels:
        panel.axis("off")
    for panel, title, picture in zip(figure.axes, pictures, eight_bits, strict=False):
        panel.set_title(title)
        panel.imshow(picture, cmap="gray", vmin=0, vmax=255)
    return figure


def _to_uint8(picture: npt.NDArray[Any]) -> npt.NDArray[np.uint8]:
    ranges = {"uint8": 255.0, "uint16": 65535.0, "float32": 1.0}
    name = str(getattr(picture, "dtype", type(picture).__name__))
    if np.ndim(picture) != 3 or picture.shape[-1] not in (1, 3) or name not in ranges:
        got = f"a picture {np.shape(picture)} {name}"
        raise InvalidInputError(got, "(H, W, 3) or (H, W, 1), uint8, uint16 or float32")
    scaled = np.clip(picture.astype(np.float32) * (255.0 / ranges[name]), 0, 255)
    eight_bits: npt.NDArray[np.uint8] = np.rint(scaled).astype(np.uint8)
    return eight_bits[..., 0] if eight_bits.shape[-1] == 1 else eight_bits
