"""Commands whose help shows what an option takes, and no names of Python's types."""

from __future__ import annotations

from typing import Any

from typer.core import TyperArgument, TyperCommand, TyperGroup

__all__ = ["Command", "CommandGroup"]


class Command(TyperCommand):
    """A command; the lines of a paragraph of its help flow, whatever the width of the terminal."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        if self.help:
            self.help = "\n\n".join(" ".join(part.split()) for part in self.help.split("\n\n"))

    def get_params(self, ctx: Any) -> list[Any]:
        """Return the arguments and options.

        Args:
            ctx: Typer's context.

        Returns:
            Typer's objects.
        """
        return _hide_types(super().get_params(ctx))


class CommandGroup(TyperGroup):
    """Several commands."""

    def get_params(self, ctx: Any) -> list[Any]:
        """Return the options.

        Args:
            ctx: Typer's context.

        Returns:
            Typer's objects.
        """
        return _hide_types(super().get_params(ctx))


def _hide_types(params: list[Any]) -> list[Any]:
    """Leave out the type of arguments, which their help tells, and of options without a value."""
    for param in params:
        if isinstance(param, TyperArgument):
            param.display_type_rich = _say_nothing  # type: ignore[method-assign]
        elif param.metavar is None and param.is_flag:
            param.metavar = ""
    return params


def _say_nothing(ctx: Any) -> str:
    return ""
