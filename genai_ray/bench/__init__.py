"""``genai-ray bench``: this machine's speed beside the plain script and other programs.

``plain_script`` is the rival, a program of its own. ``run`` takes all sides through the same clips in turns, each in
fresh processes, and compares their results with each other. ``report`` is what was measured; nothing runs there.
"""

from genai_ray.bench.report import BenchReport, CaseResult, SideResult
from genai_ray.bench.run import FULL, MAX_RUNS, QUICK, Case, run_bench

__all__ = ["FULL", "MAX_RUNS", "QUICK", "BenchReport", "Case", "CaseResult", "SideResult", "run_bench"]
