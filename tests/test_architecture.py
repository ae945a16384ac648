"""The package's shape: import levels, one gateway for each foreign library, sizes, and habits."""

import ast
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
FILES = sorted((ROOT / "genai_ray").rglob("*.py"))
LEVELS = {
    "errors": 0,
    "display": 1,
    "fields": 1,
    "progress": 1,
    "types": 1,
    "files": 1,
    "confine": 1,
    "catalog": 2,
    "graph": 2,
    "frames": 2,
    "tables": 2,
    "video": 2,
    "backends": 3,
    "quality": 3,
    "inspection": 4,
    "notebook": 4,
    "session": 5,
    "cluster": 6,
    "scenes": 6,
    "tune": 6,
    "batch": 7,
    "datasets": 7,
    "enhance": 7,
    "evaluation": 7,
    "quantization": 7,
    "validate": 7,
    "serve": 8,
    "trials": 8,
    "doctor": 8,
    "bench": 9,
    "cli": 10,
}
ROOMS = {
    "cluster": ("placement", "devices", "messages", "runtime", "served", "session_actor", "cache", "client"),
    "enhance": ("plan", "segment", "distribution", "job"),
    "serve": ("engine", "http", "oip", "web", "deployment"),
}
"""The rooms of the large packages, lowest first: a room imports only from itself and from those before it."""
SAME_LEVEL = {
    ("types", "display"),
    ("graph", "catalog"),  # its ModelSpec
    ("frames", "video"),  # columns of PNG and JPEG files
    ("enhance", "batch"),
}
GATEWAYS = {  # bench has a script that uses PyAV and ONNX Runtime without this package
    "onnx": {"graph"},
    "yaml": {"catalog"},
    "pydantic": {"catalog", "serve"},
    "pyarrow": {"frames", "tables"},
    "fsspec": {"files"},
    "av": {"bench", "video"},
    "onnxruntime": {"backends", "bench"},
    "openvino": {"backends"},
    "ray": {"cluster", "batch", "datasets", "enhance", "serve"},
    "typer": {"cli"},
    "rich": {"cli"},
    "starlette": {"serve"},
    "PIL": {"evaluation", "serve", "trials", "video"},
    "grpc": {"cluster", "serve"},
    "prometheus_client": {"serve"},
    "psutil": {"serve"},
    "skimage": {"quality"},
    "scipy": {"quality"},
    "imageio_ffmpeg": {"quality"},
    "matplotlib": {"display"},
}


def room_of(path: Path) -> str:
    parts = path.relative_to(ROOT / "genai_ray").with_suffix("").parts
    return parts[0]


def imports_of(path: Path):
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module:
            yield node.module


@pytest.mark.parametrize(
    "path",
    [path for path in FILES if path != ROOT / "genai_ray" / "__init__.py"],
    ids=lambda path: str(path.relative_to(ROOT)),
)
def test_imports_go_up_only_and_libraries_have_one_gateway(path):
    room = room_of(path)
    for name in imports_of(path):
        top, *rest = name.split(".")
        if top == "genai_ray" and rest:
            assert rest[0] == room or LEVELS[rest[0]] < LEVELS[room] or (room, rest[0]) in SAME_LEVEL, name
        assert room in GATEWAYS.get(top, {room}), f"{name} is imported by {sorted(GATEWAYS[top])} alone"


def names_below(folder: Path) -> set[str]:
    """Return the packages and modules of a folder."""
    return {path.stem for path in folder.glob("[a-z]*") if path.suffix == ".py" or (path / "__init__.py").exists()}


def test_levels_and_rooms_are_those_that_exist():
    assert set(LEVELS) == names_below(ROOT / "genai_ray")
    for package, order in ROOMS.items():
        assert set(order) == names_below(ROOT / "genai_ray" / package)


def test_rooms_import_only_from_rooms_below():
    for package, order in ROOMS.items():
        for path in (ROOT / "genai_ray" / package).rglob("*.py"):
            room, *_ = path.relative_to(ROOT / "genai_ray" / package).with_suffix("").parts
            if room == "__init__":
                continue
            for name in imports_of(path):
                parts = name.split(".")
                if parts[:2] == ["genai_ray", package] and len(parts) > 2:
                    assert order.index(parts[2]) <= order.index(room), f"{path.name}: {name}"


ARGUMENTS = {"load_model": 8, "_run": 7, "validate_videos": 8, "verify_video": 7}
"""More than 6: what the design writes of ``load_model``; one trial run of an inspected model, named by keywords; and
two functions for users whose options are those of a command."""


def functions_of(path: Path):
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            yield node


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(ROOT)))
def test_sizes_and_habits(path):
    text = path.read_text()
    assert len(text.splitlines()) <= 500
    is_command = room_of(path) == "cli"
    for function in functions_of(path):
        first = function.body[0]
        has_docstring = (
            isinstance(first, ast.Expr) and isinstance(first.value, ast.Constant) and isinstance(first.value.value, str)
        )
        length = function.end_lineno - (first.end_lineno if has_docstring else function.lineno)
        assert length <= 60, f"{function.name} has {length} lines"
        arguments = [
            a.arg
            for a in (*function.args.posonlyargs, *function.args.args, *function.args.kwonlyargs)
            if a.arg not in ("self", "cls")
        ]
        assert is_command or len(arguments) <= ARGUMENTS.get(function.name, 6), (
            f"{function.name} takes {len(arguments)}"
        )
    for node in ast.walk(ast.parse(text)):
        assert not isinstance(node, ast.Assert), "assert as validation"
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Name):
            assert node.func.id != "print" or is_command
        if isinstance(node, ast.ExceptHandler):
            caught = ast.unparse(node.type) if node.type is not None else ""
            assert caught not in ("", "Exception") or isinstance(node.body[-1], ast.Raise), "errors swallowed"


def test_no_file_names_a_development_machine():
    words = ["/wo" + "rk/", "/ro" + "ot/", "Test" + "PyPI"]
    for path in [*FILES, *ROOT.glob("*.md"), *(ROOT / "configs").rglob("*.yaml"), *(ROOT / "tests").rglob("*.py")]:
        text = path.read_text()
        assert not [word for word in words if word in text], path


def test_names_of_tests_are_short():
    for path in (ROOT / "tests").rglob("test_*.py"):
        for name in (function.name for function in functions_of(path)):
            assert len(name) <= 60 or not name.startswith("test_"), f"{path.name}: {name}"
