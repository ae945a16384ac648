"""``Query``: the query of a request as a pydantic model, which makes both the parser and the OpenAPI parameters."""

from __future__ import annotations

import math
from collections.abc import Collection
from typing import Annotated, Any, TypeVar, get_origin

from pydantic import BaseModel, BeforeValidator, ConfigDict, ValidationError, WithJsonSchema
from starlette.requests import Request

from genai_ray.errors import InvalidInputError

__all__ = ["Params", "Query", "check_given_once", "parse_query"]

Parsed = TypeVar("Parsed", bound="Query")


class Query(BaseModel):
    """A query; each field is one parameter. Unknown names are refused, and only tuples may come several times."""

    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True)


def parse_query(request: Request, kind: type[Parsed]) -> Parsed:
    """Read the query of a request.

    Args:
        request: The request.
        kind: The query that its route takes; ``Query`` if it takes none.

    Returns:
        The query.

    Raises:
        InvalidInputError: If a name is unknown, missing or repeated, or a value is wrong.
    """
    fields = kind.model_fields
    values: dict[str, Any] = {}
    for name, value in request.query_params.multi_items():
        if name not in fields:
            raise InvalidInputError(f"{name[:40]!r} in the query", ", ".join(sorted(fields)))
        if get_origin(fields[name].annotation) is tuple:
            values.setdefault(name, []).append(value)
        elif name in values:
            raise InvalidInputError(f"{name!r} twice in the query", "once")
        else:
            values[name] = value
    try:
        return kind.model_validate(values)
    except ValidationError as exc:
        error = exc.errors()[0]
        name = str(error["loc"][0])
        if error["type"] in ("missing", "string_too_short"):
            raise InvalidInputError(f"a query without {name}", f"{name}=...") from exc
        if isinstance(cause := error.get("ctx", {}).get("error"), InvalidInputError):
            raise cause from exc
        allowed = error["msg"].removeprefix("Input should be ")
        raise InvalidInputError(f"{name}={str(error['input'])[:40]!r}", allowed) from exc


def check_given_once(params: Collection[str], pictures: Collection[str]) -> None:
    """Refuse an extra input of a model that comes twice.

    Args:
        params: Names of those in the query.
        pictures: Names of those that are files of the form.

    Raises:
        InvalidInputError: If a name is in both.
    """
    for name in params:
        if name in pictures:
            got = f"param {name[:40]!r} both in the query and as the file param.{name[:40]}"
            raise InvalidInputError(got, "one of them", "Leave it out of params=..., or leave the file out.")


def _parse_params(text: str) -> dict[str, float | tuple[float, ...]]:
    """Read values by name; a number without a name is one more of the vector before it."""
    numbers: dict[str, list[float]] = {}
    name = ""
    text = text.strip().removesuffix(",")
    for part in text.split(",") if text else ():
        given, is_named, number = part.rpartition("=")
        try:
            value = float(number)
        except ValueError:
            value = math.nan
        is_wrong = not given.strip() or given.strip() in numbers if is_named else not name
        if is_wrong or math.isnan(value):
            do = "Separate them by commas: params=sigma=0.1,style=0,0.5,1."
            raise InvalidInputError(f"params {part[:40]!r}", "NAME=NUMBER, or NAME=NUMBER,NUMBER, each name once", do)
        name = given.strip() or name
        numbers.setdefault(name, []).append(value)
    return {name: tuple(values) if len(values) > 1 else values[0] for name, values in numbers.items()}


Params = Annotated[
    dict[str, float | tuple[float, ...]],
    BeforeValidator(_parse_params),
    WithJsonSchema(
        {
            "type": "string",
            "description": "Extra inputs of the model: NAME=NUMBER, separated by commas; a vector is NAME=0,0.5,1.",
        }
    ),
]
"""Extra inputs of models, written as ``params=sigma=0.1,style=0,0.5,1``."""
