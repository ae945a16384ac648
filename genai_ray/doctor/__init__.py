"""What this machine has, what is missing, and what mends it: everything is tried, nothing is only looked up.

One module for each topic: ``machine``, ``runtimes``, ``media``, ``models``, ``folders``, ``clusters``. ``findings``
says what they return. Ray is neither started nor joined.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator

from genai_ray.doctor.findings import Diagnosis, Finding, State
from genai_ray.errors import GenAIRayError

__all__ = ["Diagnosis", "Finding", "State", "diagnose"]

_REINSTALL = "pip install --force-reinstall genai-ray"
_ACCESS = "Give this user access to it, or set HOME, TMPDIR or GENAI_RAY_MODELS to a folder of this user."


def diagnose(address: str | None = None) -> Diagnosis:
    """Try everything that the commands need.

    Args:
        address: Ray cluster that would be joined; None for ``RAY_ADDRESS``, or one that runs on this machine.

    Returns:
        What was found.
    """
    findings: list[Finding] = []
    checks: dict[str, Callable[[], Iterator[Finding]]] = {
        "machine": _check_machine,
        "runtimes": _check_runtimes,
        "video": _check_media,
        "models": _check_models,
        "folders": _check_folders,
        "cluster": lambda: _check_cluster(address),
    }
    for topic, check in checks.items():
        findings += _collect(topic, check)
    return Diagnosis(tuple(findings))


def _collect(topic: str, check: Callable[[], Iterator[Finding]]) -> Iterator[Finding]:
    """Yield what a check finds, and then what it failed with: nothing of what it had found before is lost."""
    try:
        yield from check()
    except GenAIRayError as exc:
        yield Finding(topic, topic, State.BROKEN, exc.got, exc.do)
    except (ImportError, OSError) as exc:
        if isinstance(exc, OSError) and exc.errno is not None:
            place = f"{exc.filename}: " if exc.filename is not None else ""
            yield Finding(topic, topic, State.BROKEN, f"{place}{exc.strerror}", _ACCESS)
        else:  # a library of the package is missing, or does not load, of which the loader gives no number
            detail = f"{type(exc).__name__}: {exc}".splitlines()[0]
            yield Finding(topic, "packages", State.BROKEN, detail, _REINSTALL)


# Each check imports its libraries when it is called, so that one that does not load is a finding.


def _check_machine() -> Iterator[Finding]:
    from genai_ray.doctor.machine import check_machine  # noqa: PLC0415

    return check_machine()


def _check_runtimes() -> Iterator[Finding]:
    from genai_ray.doctor.runtimes import check_runtimes  # noqa: PLC0415

    return check_runtimes()


def _check_media() -> Iterator[Finding]:
    from genai_ray.doctor.media import check_media  # noqa: PLC0415

    return check_media()


def _check_models() -> Iterator[Finding]:
    from genai_ray.doctor.models import check_models  # noqa: PLC0415

    return check_models()


def _check_folders() -> Iterator[Finding]:
    from genai_ray.doctor.folders import check_folders  # noqa: PLC0415

    return check_folders()


def _check_cluster(address: str | None) -> Iterator[Finding]:
    from genai_ray.doctor.clusters import check_cluster  # noqa: PLC0415

    return check_cluster(address)
