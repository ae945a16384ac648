"""``Finding``: one thing that was tried on this machine, and what came of it."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from enum import StrEnum
from typing import Any

__all__ = ["Diagnosis", "Finding", "State"]


class State(StrEnum):
    """What came of it."""

    OK = "ok"
    """It works."""
    ABSENT = "absent"
    """It is not here, and nothing needs it."""
    WARNING = "warning"
    """Something that one should know: it is slow, open, or nearly full, or a part does not work that is here."""
    BROKEN = "broken"
    """It is needed, and does not work."""


@dataclass(frozen=True, slots=True)
class Finding:
    """One thing that was tried."""

    topic: str
    """What it belongs to: ``machine``, ``runtimes``, ``video``, ``models``, ``folders`` or ``cluster``."""
    name: str
    """What was tried."""
    state: State
    """What came of it."""
    detail: str
    """What was found, in words."""
    do: str = ""
    """The command that mends it, or what else to do; empty if nothing is to be done."""


@dataclass(frozen=True, slots=True)
class Diagnosis:
    """Everything that was tried."""

    findings: tuple[Finding, ...]
    """In the order in which they were made; those of one topic are together."""

    @property
    def works(self) -> bool:
        """Whether everything needed works."""
        return not any(finding.state is State.BROKEN for finding in self.findings)

    def to_dict(self) -> dict[str, Any]:
        """Return the diagnosis as plain values, fit for JSON.

        Returns:
            ``works``, and the findings as dictionaries.
        """
        return {"works": self.works, "findings": [asdict(finding) for finding in self.findings]}
