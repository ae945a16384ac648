"""What the package says it exports is what it exports, documented; and importing it is cheap."""

import importlib
import inspect
import pkgutil
import subprocess
import sys
from enum import Enum

import pytest

import genai_ray

MODULES = sorted(
    {
        "genai_ray",
        *(
            info.name
            for info in pkgutil.walk_packages(genai_ray.__path__, "genai_ray.")
            if not info.name.endswith("__main__")
        ),
    }
)


@pytest.mark.parametrize("name", MODULES)
def test_all_is_sorted_and_there(name):
    module = importlib.import_module(name)
    assert module.__doc__
    assert list(module.__all__) == sorted(module.__all__, key=lambda word: (word.upper() != word, word)) or list(
        module.__all__
    ) == sorted(module.__all__)
    for word in module.__all__:
        assert getattr(module, word) is not None


def public_callables():
    seen = set()
    for name in MODULES:
        if name.startswith("genai_ray.cli"):
            continue
        module = importlib.import_module(name)
        for word in module.__all__:
            thing = getattr(module, word)
            if (
                (inspect.isclass(thing) or inspect.isfunction(thing))
                and thing.__module__.startswith("genai_ray")
                and thing not in seen
            ):
                seen.add(thing)
                yield thing
                if inspect.isclass(thing):
                    for method_name, method in vars(thing).items():
                        function = method.__func__ if isinstance(method, staticmethod | classmethod) else method
                        if not method_name.startswith("_") and inspect.isfunction(function):
                            yield function


@pytest.mark.parametrize(
    "thing", list(public_callables()), ids=lambda thing: f"{thing.__module__}.{thing.__qualname__}"
)
def test_public_callables_are_documented(thing):
    text = inspect.getdoc(thing) or ""
    assert text
    if inspect.isclass(thing) and (
        issubclass(thing, BaseException | Enum)
        or getattr(thing, "_is_protocol", False)
        or hasattr(thing, "__dataclass_fields__")
        or hasattr(thing, "model_fields")
    ):
        return
    signature = inspect.signature(thing)
    # Ray adds ``_ray_trace_ctx`` to the methods of a class that it has made an actor of.
    arguments = [name for name in signature.parameters if name not in ("self", "_ray_trace_ctx")]
    if arguments:
        assert "Args:" in text
        for name in arguments:
            assert f"{name}:" in text, name
    if inspect.isfunction(thing):
        returns = str(signature.return_annotation)
        if "Iterator" in returns:
            assert "Yields:" in text
        elif returns not in ("None", "Self"):
            assert "Returns:" in text
        if "raise " in inspect.getsource(thing):
            assert "Raises:" in text


@pytest.mark.parametrize(
    ("package", "heavy"),
    [
        ("genai_ray", ("ray", "onnxruntime", "av", "onnx", "pyarrow", "pydantic")),
        # Each process of a job imports it.
        ("genai_ray.enhance", ("pyarrow", "pandas", "ray.data", "ray.serve", "grpc", "openvino", "scipy", "typer")),
    ],
)
def test_importing_a_package_loads_only_what_it_needs(package, heavy):
    code = f"import sys, {package}; print([name for name in {heavy} if name in sys.modules])"
    assert (
        subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.strip() == "[]"
    )


def test_unknown_names_are_attribute_errors():
    with pytest.raises(AttributeError, match="Enhancer"):
        _ = genai_ray.Enhancer
    assert "ModelCache" in dir(genai_ray)
