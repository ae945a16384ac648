"""What this machine has, what is missing, and what mends it: everything is tried, nothing is only looked up.

One module for each topic: ``machine``, ``runtimes``, ``media``, ``models``, ``folders``, ``clusters``. ``findings``
says what they return. Ray is neither started nor joined.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable

from genai_ray.doctor.findings import Diagnosis, Finding, State

__all__ = ["Diagnosis", "Finding", "State", "diagnose"]

_REINSTALL = "pip install --force-reinstall genai-ray"


def diagnose(address: str | None = None) -> Diagnosis:
    """Try everything that the commands need.

    Args:
        address: Ray cluster that would be joined; None for ``RAY_ADDRESS``, or one that runs on this machine.

    Returns:
        What was found.
    """
    findings: list[Finding] = []
    checks: dict[str, Callable[[], Iterable[Finding]]] = {
        "machine": _check_machine,
        "runtimes": _check_runtimes,
        "video": _check_media,
        "models": _check_models,
        "folders": _check_folders,
        "cluster": lambda: _check_cluster(address),
    }
    for topic, check in checks.items():
        try:
            findings += check()
        except (ImportError, OSError) as exc:  # a library of the package is missing, or does not load
            detail = f"{type(exc).__name__}: {exc}".splitlines()[0]
            findings.append(Finding(topic, "packages", State.BROKEN, detail, _REINSTALL))
    return Diagnosis(tuple(findings))


# Each check imports its libraries when it is called, so that one that does not load is a finding.


def _check_machine() -> list[Finding]:
    from genai_ray.doctor.machine import check_machine  # noqa: PLC0415

    return list(check_machine())


def _check_runtimes() -> list[Finding]:
    from genai_ray.doctor.runtimes import check_runtimes  # noqa: PLC0415

    return list(check_runtimes())


def _check_media() -> list[Finding]:
    from genai_ray.doctor.media import check_media  # noqa: PLC0415

    return list(check_media())


def _check_models() -> list[Finding]:
    from genai_ray.doctor.models import check_models  # noqa: PLC0415

    return list(check_models())


def _check_folders() -> list[Finding]:
    from genai_ray.doctor.folders import check_folders  # noqa: PLC0415

    return list(check_folders())


def _check_cluster(address: str | None) -> list[Finding]:
    from genai_ray.doctor.clusters import check_cluster  # noqa: PLC0415

    return list(check_cluster(address))
