"""AUTO of a job: which runtime and number format compute it, measured where its sessions will be."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias

import ray
from ray.exceptions import GetTimeoutError, RayError, RayTaskError
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from genai_ray.cluster import ModelCache, SessionRequest, uses_gpu
from genai_ray.cluster.cache.status import DeviceStatus
from genai_ray.cluster.devices import CPU, GPU_UNITS, LOGICAL_GPU
from genai_ray.enhance.plan.options import EnhanceOptions
from genai_ray.errors import GenAIRayError
from genai_ray.session import processor_facts
from genai_ray.tune import (
    MIN_QUALITY_DB,
    PART_PX,
    REFERENCE,
    Tuning,
    Way,
    choose_way,
    find_tuning,
    predict_tuning_bytes,
    tune_model,
)
from genai_ray.types import ModelBackend, ModelPrecision

__all__ = ["Choice", "choose_here", "choose_on_cluster"]

_log = logging.getLogger(__name__)

START_WITHIN_S = 60.0
"""A process that measures must have started by then: other sessions may hold the memory of its node."""

_Model: TypeAlias = tuple[str, tuple[int, int]]
"""Its id, and (height, width) of its frames."""

_PROCESS_BYTES = 150_000_000
"""Bytes of a process that measures, without the models."""


@dataclass(frozen=True, slots=True)
class Choice:
    """In which runtime and number format a job with AUTO computes, and why."""

    way: Way
    """The runtime and the number format, the same for all models of the chain."""
    origin: str
    """``measured`` now, ``recorded`` by an earlier run, ``begun`` (an interrupted job goes on as it began), or
    ``not measured``."""
    tunings: tuple[Tuning, ...] = ()
    """What was measured: each model on each kind of device."""
    why: str = ""
    """Why nothing was measured."""

    def __str__(self) -> str:
        if self.origin == "begun":
            return f"{self.way}, in which the job began"
        if not self.tunings:
            return f"{self.way}, not measured: {self.why}"
        speeds = []
        for tuning in self.tunings:
            known = {one.way: tuning.frames_per_s(one) for one in tuning.measured}
            beside = f", {known[REFERENCE]:.3g} in {REFERENCE}" if self.way != REFERENCE else ""
            speeds.append(f"{tuning.model_id} {known[self.way]:.3g} frames/s{beside}")
        return f"{self.way}, {self.origin}: {'; '.join(speeds)}"

    def to_dict(self) -> dict[str, Any]:
        """Return the choice as plain values, fit for JSON.

        Returns:
            The fields by name, the way as ``backend`` and ``precision``.
        """
        return {
            "backend": self.way.backend.value,
            "precision": self.way.precision.value,
            "origin": self.origin,
            "tunings": [tuning.to_dict() for tuning in self.tunings],
            "why": self.why,
        }


def choose_here(requests: Sequence[SessionRequest], options: EnhanceOptions) -> Choice:
    """Choose by measuring in this process, or by what an earlier run has measured on this machine.

    Args:
        requests: The sessions of the job.
        options: Its options.

    Returns:
        The choice.

    Raises:
        GenAIRayError: If a model does not run at all.
    """
    return _choose(_tune_all(_models_of(requests), options.precision, options.device), options)


def choose_on_cluster(cache: ModelCache, requests: Sequence[SessionRequest], options: EnhanceOptions) -> Choice:
    """Choose by measuring in one process on each kind of device that the job may use.

    What an earlier run has measured is taken from the record of the node.

    Args:
        cache: A client of the job's cache.
        requests: The sessions of the job.
        options: Its options.

    Returns:
        The choice. If nothing can be measured, it is ONNX Runtime in FP32, which the log says.

    Raises:
        GenAIRayError: If a model does not run at all.
    """
    models = _models_of(requests)
    is_gpu = uses_gpu(options.device, ModelBackend.ONNX)
    devices = [device for device in cache.status().devices if _may_use(device, options, is_gpu=is_gpu)]
    here = str(ray.get_runtime_context().get_node_id())
    if {device.node for device in devices} == {here} and not _is_real_gpu(devices[0]):
        known = [find_tuning(model, size, precision=options.precision, device=CPU) for model, size in models]
        found = [tuning for tuning in known if tuning is not None]
        if len(found) == len(models):
            return _choose(found, options)
    if not devices:
        return _unmeasured("the cluster has no device of this kind yet")
    try:
        return _choose(_measure_on(_one_of_each_kind(devices), models, options.precision), options)
    except RayTaskError as exc:
        if isinstance(exc.cause, GenAIRayError):
            raise exc.cause from None
        raise
    except GetTimeoutError:
        return _unmeasured(f"no process for it started within {START_WITHIN_S:.0f} s: memory is short")
    except RayError as exc:
        return _unmeasured(f"its process ended ({type(exc).__name__})")


def _models_of(requests: Sequence[SessionRequest]) -> list[_Model]:
    return [(request.model, request.max_frame or (PART_PX, PART_PX)) for request in requests]


def _choose(tunings: Sequence[Tuning], options: EnhanceOptions) -> Choice:
    least_db = MIN_QUALITY_DB if options.min_quality_db is None else options.min_quality_db
    may_use_cpu = options.device in ("auto", CPU)  # a GPU that Ray only counts is measured as the CPU that it is
    measured = [
        [one for one in tuning.measured if may_use_cpu or one.way.backend is ModelBackend.ONNX] for tuning in tunings
    ]
    pixels = [tuning.size[0] * tuning.size[1] for tuning in tunings]
    way = choose_way(measured, options.precision, least_db, pixels)
    is_recorded = all(tuning.is_recorded for tuning in tunings)
    return Choice(way, "recorded" if is_recorded else "measured", tuple(tunings))


def _unmeasured(why: str) -> Choice:
    choice = Choice(REFERENCE, "not measured", why=why)
    _log.warning("backend auto: %s", choice)
    return choice


def _is_real_gpu(device: DeviceStatus) -> bool:
    return device.kind not in (CPU, LOGICAL_GPU)


def _may_use(device: DeviceStatus, options: EnhanceOptions, *, is_gpu: bool) -> bool:
    """Tell whether the job's sessions may be on a device, as ``cluster.devices.allowed_kinds`` does."""
    if options.device_kinds:
        return any(name.lower() in device.kind.lower() for name in options.device_kinds)
    return (device.kind != CPU) is is_gpu


def _one_of_each_kind(devices: Sequence[DeviceStatus]) -> list[DeviceStatus]:
    """Return one device of each kind: nodes with unlike processors differ, though all are called ``cpu``."""
    nodes = sorted({device.node for device in devices if not _is_real_gpu(device)})
    processors: dict[str, tuple[str, ...]] = {}
    if len(nodes) > 1:
        task: Any = ray.remote(processor_facts)
        probes = [task.options(num_cpus=0, scheduling_strategy=_on(node)).remote() for node in nodes]
        processors = dict(zip(nodes, ray.get(probes, timeout=START_WITHIN_S), strict=True))
    kinds: dict[Any, DeviceStatus] = {}
    for device in devices:
        kinds.setdefault(device.kind if _is_real_gpu(device) else processors.get(device.node), device)
    return list(kinds.values())


def _measure_on(devices: Sequence[DeviceStatus], models: list[_Model], precision: ModelPrecision) -> list[Tuning]:
    """Measure the models in a process on each device, all devices at the same time."""
    actors = []
    try:
        for device in devices:
            is_gpu = _is_real_gpu(device)
            word = "cuda" if is_gpu else CPU
            num_bytes = max(predict_tuning_bytes(*model, precision, is_gpu=is_gpu) for model in models)
            actor_class: Any = ray.remote(_Tuner)
            actor = actor_class.options(
                num_cpus=0,
                num_gpus=1 / GPU_UNITS if is_gpu else 0,
                memory=_PROCESS_BYTES + (0 if is_gpu else num_bytes),
                scheduling_strategy=_on(device.node),
            ).remote(models, precision, word)
            actors.append(actor)
        ray.get([actor.start.remote() for actor in actors], timeout=START_WITHIN_S)
        return [tuning for found in ray.get([actor.tune.remote() for actor in actors]) for tuning in found]
    finally:
        for actor in actors:
            ray.kill(actor)


class _Tuner:
    """The process that measures on one device."""

    def __init__(self, models: list[_Model], precision: ModelPrecision, device: str) -> None:
        self._models = models
        self._precision = precision
        self._device = device

    def start(self) -> None:
        """Answer when the process has started."""

    def tune(self) -> list[Tuning]:
        return _tune_all(self._models, self._precision, self._device)


def _on(node: str) -> NodeAffinitySchedulingStrategy:
    return NodeAffinitySchedulingStrategy(node, soft=False)


def _tune_all(models: Sequence[_Model], precision: ModelPrecision, device: str) -> list[Tuning]:
    return [tune_model(model, size, precision=precision, device=device) for model, size in models]
