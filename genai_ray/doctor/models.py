"""Models: the files that come with the package, and those that are pulled."""

from __future__ import annotations

from collections.abc import Iterator

from genai_ray.catalog import ModelCatalog, models_folder
from genai_ray.doctor.findings import Finding, State
from genai_ray.errors import ConfigError, GenAIRayError, ModelNotFoundError

__all__ = ["check_models"]

TOPIC = "models"

_ANOTHER = "Set GENAI_RAY_MODELS to a folder that this user may read."
_REINSTALL = "pip install --force-reinstall --no-deps genai-ray"


def check_models() -> Iterator[Finding]:
    """Check the hash of every model of the catalog.

    Yields:
        Which are there, and which are not.
    """
    try:
        catalog = ModelCatalog.default()
    except ConfigError as exc:
        yield Finding(TOPIC, "catalog", State.BROKEN, str(exc), f"Correct the .yaml files in {models_folder()}.")
        return
    except OSError as exc:
        yield Finding(TOPIC, "catalog", State.BROKEN, f"{exc.filename}: {exc.strerror}", _ANOTHER)
        return
    found = {True: 0, False: 0}
    for model_id in catalog.ids():
        is_packaged = catalog.get(model_id).url is None
        try:
            catalog.path(model_id)
        except GenAIRayError as exc:
            yield _describe(model_id, exc, is_packaged=is_packaged)
        except OSError as exc:
            state = State.BROKEN if is_packaged else State.WARNING
            yield Finding(TOPIC, model_id, state, f"{exc.filename}: {exc.strerror}", _ANOTHER)
        else:
            found[is_packaged] += 1
    yield Finding(TOPIC, "packaged", State.OK, f"{found[True]} models, each with the right hash")
    yield Finding(TOPIC, "pulled", State.OK, f"{found[False]} models in {models_folder()}")
    for name, error in catalog.left_out().items():
        yield Finding(TOPIC, f"{name}.yaml", State.WARNING, f"left out: {error}", "Correct the file, or remove it.")


def _describe(model_id: str, error: GenAIRayError, *, is_packaged: bool) -> Finding:
    if not is_packaged and isinstance(error, ModelNotFoundError):
        return Finding(TOPIC, model_id, State.ABSENT, "not pulled", f"genai-ray models pull {model_id}")
    if not is_packaged:
        return Finding(TOPIC, model_id, State.WARNING, error.got, error.do)
    return Finding(TOPIC, model_id, State.BROKEN, error.got, _REINSTALL)
