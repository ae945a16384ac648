"""Commands whose help shows what an option takes, and no names of Python's types."""

from __future__ import annotations

from typing import Any

from typer.core import TyperArgument, TyperCommand, TyperGroup

__all__ = ["Command", "CommandGroup"]


class _WithoutTypes:
    """Several options; what they take is told by their help, not by names of types."""

    def get_params(self, ctx: Any) -> list[Any]:
        """Return the arguments and options.

        Args:
            ctx: Typer's context.

        Returns:
            Typer's objects.
        """
        params: list[Any] = super().get_params(ctx)  # type: ignore[misc]
        for param in params:
            if isinstance(param, TyperArgument):
                param.display_type_rich = _say_nothing  # type: ignore[method-assign]
            elif param.metavar is None and param.is_flag:
                param.metavar = ""
        return params


class Command(_WithoutTypes, TyperCommand):
    """A command; the lines of a paragraph of its help flow, whatever the width of the terminal."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        if self.help:
            self.help = "\n\n".join(" ".join(part.split()) for part in self.help.split("\n\n"))


class CommandGroup(_WithoutTypes, TyperGroup):
    """Several commands."""


def _say_nothing(ctx: Any) -> str:
    return ""
