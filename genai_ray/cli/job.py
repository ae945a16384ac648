"""Runs the job of ``enhance`` and tells it: the plan or the report, as a table or as a line of JSON, and progress."""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Callable, Sequence
from contextlib import redirect_stdout
from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING, TypeVar

from genai_ray.cli.choices import Manner, check_inputs
from genai_ray.cli.pipe import is_pipe, run_pipe
from genai_ray.cli.progress import choose_bar, stopping
from genai_ray.cli.tables import print_failures, print_forecast, print_report

if TYPE_CHECKING:
    from genai_ray.enhance import EnhanceOptions, EnhanceReport, JobForecast

__all__ = ["run_job"]

Told = TypeVar("Told", "EnhanceReport", "JobForecast")


def run_job(inputs: Sequence[str], output: str, models: Sequence[str], options: EnhanceOptions, manner: Manner) -> int:
    """Run a job, show how far it is, and print its report; of a dry run, what the job would do.

    Args:
        inputs: As ``enhance_videos``.
        output: As ``enhance_videos``.
        models: As ``enhance_videos``.
        options: As ``enhance_videos``.
        manner: How it is told.

    Returns:
        How many videos failed; 0 of a dry run.

    Raises:
        GenAIRayError: As ``enhance_videos``, of a dry run as ``forecast_videos``.
    """
    check_inputs(inputs, is_any_enough=True)
    from genai_ray.enhance import enhance_videos, forecast_videos

    if is_pipe(inputs, output, is_forecast=manner.is_dry_run):
        run_pipe(models, options, manner)
        return 0
    if manner.is_dry_run:
        _print(forecast_videos(inputs, output, models=models, options=options), print_forecast, manner)
        return 0
    shown = choose_bar(is_quiet=manner.is_quiet)
    before_s = time.process_time()  # imports, in CPU seconds: this process may have begun as a shell
    with stopping(shown), shown, redirect_stdout(sys.stderr):  # Ray prints what happens to its processes
        report = enhance_videos(inputs, output, models=models, options=options, on_progress=shown)
    # The start of this process counts in the report.
    report = replace(report, elapsed_s=report.elapsed_s + before_s, startup_s=report.startup_s + before_s)
    _print(report, partial(print_report, is_verbose=manner.is_verbose, told=shown.told), manner)
    if manner.is_quiet and not manner.as_json:
        print_failures(report)
    return report.clips_failed


def _print(told: Told, show: Callable[[Told], None], manner: Manner) -> None:
    if manner.as_json:
        print(json.dumps(told.to_dict()))
    elif not manner.is_quiet:
        show(told)
