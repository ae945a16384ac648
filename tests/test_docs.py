"""The paths and links of the documents are true: each step of a path exists, and its caller names it."""

import ast
import re
from functools import cache
from pathlib import Path

import pytest

from tests.benchmarks import model_cards
from tests.benchmarks.figures import FIGURE, TABLE, fill
from tests.benchmarks.figures import PAGES as FIGURE_PAGES
from tests.test_architecture import ROOMS

ROOT = Path(__file__).resolve().parents[1]
PAGES = sorted([*ROOT.glob("*.md"), *(ROOT / "docs").glob("*.md")])
PAGE = (ROOT / "docs" / "architecture.md").read_text()
MAX_FILES = {"The path of a frame": 21, "The path of a request": 10}
STEP = re.compile(r"^(\d+)\. `([\w/]+\.py)::([\w.]+)`(?:, called by (?:step (\d+)|(Starlette)))?", re.MULTILINE)


def section(title):
    return PAGE.partition(f"## {title}\n")[2].partition("\n## ")[0]


def steps_of(title):
    """Return (number, file, name, number of the caller, whether another library calls it) of each step."""
    found = STEP.findall(section(title))
    return [(int(step), file, name, int(caller or int(step) - 1), bool(app)) for step, file, name, caller, app in found]


@cache
def parse(file):
    return ast.parse((ROOT / "genai_ray" / file).read_text())


def find(file, name):
    """Return the node of a function or class of a file; None if there is none."""
    node = parse(file)
    for part in name.split("."):
        kinds = ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef
        found = [child for child in getattr(node, "body", ()) if isinstance(child, kinds) and child.name == part]
        if not found:
            return None
        node = found[-1]
    return node


def names_in(node):
    for child in ast.walk(node):
        if isinstance(child, ast.Name):
            yield child.id
        elif isinstance(child, ast.Attribute):
            yield child.attr


def names_of(file, name):
    """Return what a function names: itself, or by the functions, methods of its class and constants of its module that
    it uses."""
    helpers = {}
    owner = find(file, name.rpartition(".")[0]) if "." in name else None
    for node in [*parse(file).body, *getattr(owner, "body", ())]:
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            helpers[node.name] = node
        elif isinstance(node, ast.Assign | ast.AnnAssign) and node.value is not None:
            targets = node.targets if isinstance(node, ast.Assign) else [node.target]
            helpers |= {target.id: node.value for target in targets if isinstance(target, ast.Name)}
    names, new = set(), set(names_in(find(file, name)))
    while new:
        names |= new
        new = {found for name in new & helpers.keys() for found in names_in(helpers[name])} - names
    return names


@pytest.mark.parametrize("title", MAX_FILES)
def test_each_step_of_a_path_is_named_by_its_caller(title):
    steps = steps_of(title)
    assert [number for number, *_ in steps] == list(range(1, len(steps) + 1))
    assert len(steps) == len(re.findall(r"^\d+\. ", section(title), re.MULTILINE)) > 5
    places = {number: (file, name) for number, file, name, *_ in steps}
    for number, file, name, caller, is_foreign in steps:
        assert find(file, name) is not None, f"step {number}: no {name} in {file}"
        if number > 1 and not is_foreign:
            assert name.rpartition(".")[2] in names_of(*places[caller]), (
                f"step {caller} does not name step {number}, {name}"
            )


@pytest.mark.parametrize(("title", "most"), MAX_FILES.items())
def test_a_path_passes_few_files(title, most):
    assert len({file for _, file, *_ in steps_of(title)}) <= most


def test_the_table_of_rooms_has_every_room_in_its_order():
    rows = re.findall(r"^\| `(\w+/\w+)` \|", PAGE, re.MULTILINE)
    assert rows == [f"{package}/{room}" for package, order in ROOMS.items() for room in order]


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_every_file_that_a_page_names_exists(page):
    for place in re.findall(r"`((?:genai_ray|tests|docs|configs|deployments)/[\w/.*]+)`", page.read_text()):
        assert any(ROOT.glob(place.rstrip("/"))) or "NAME" in place, place


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_a_page_that_starts_a_cluster_tells_of_the_token(page):
    text = page.read_text()
    assert not re.search(r"\bray (start|up)\b", text) or "token" in text


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_every_link_of_a_page_leads_somewhere(page):
    for place, _, anchor in (link.partition("#") for link in re.findall(r"\]\(([^):]+)\)", page.read_text())):
        target = (page.parent / place) if place else page
        assert target.exists(), place
        headings = re.findall(r"^#+ (.*)$", target.read_text(), re.MULTILINE) if anchor else []
        assert not anchor or anchor in [re.sub(r"[^\w -]", "", text).lower().replace(" ", "-") for text in headings], (
            anchor
        )


@pytest.mark.parametrize(
    "page",
    [page for page in PAGES if any(kind.search(page.read_text()) for kind in (FIGURE, TABLE))],
    ids=lambda page: page.name,
)
def test_measured_figures_are_those_of_the_results(page):
    assert page in FIGURE_PAGES
    assert page.read_text() == fill(page.read_text()), "run tests/benchmarks/figures.py"


def test_every_figure_of_the_readme_names_its_result():
    table = re.search(r"^\| what \| genai_ray .*?\n\n", (ROOT / "README.md").read_text(), re.MULTILINE | re.DOTALL)[0]
    rows = table.strip().splitlines()[2:]
    assert len(rows) == 14
    assert all(len(FIGURE.findall(row)) >= 2 and re.search(r"\d{4}-\d\d-\d\d<!--", row) for row in rows)


def test_every_public_name_is_in_the_reference():
    import genai_ray

    page = (ROOT / "docs" / "reference" / "python.md").read_text()
    listed = re.findall(r"^::: genai_ray\.(\w+)$", page, re.MULTILINE)
    assert sorted(listed) == sorted(set(genai_ray.__all__) - {"__version__"})


def test_every_page_is_in_the_navigation():
    named = re.findall(r"^ +- ([\w/-]+\.md)$", (ROOT / "mkdocs.yml").read_text(), re.MULTILINE)
    docs = ROOT / "docs"
    assert sorted(named) == sorted(str(page.relative_to(docs)) for page in docs.rglob("*.md"))


def test_the_page_of_models_has_what_each_is_for():
    from genai_ray import ModelCatalog

    table = (ROOT / "docs" / "choosing.md").read_text().partition("## What they are for\n")[2].partition("\n## ")[0]
    catalog = ModelCatalog.default()
    purposes = {spec.model_id: spec.purpose for spec in map(catalog.get, catalog.ids()) if spec.purpose}
    assert dict(re.findall(r"^\| `([\w-]+)` \| (.*) \|$", table, re.MULTILINE)) == purposes
    assert len(purposes) >= 17


def test_the_table_of_models_is_that_of_the_result():
    page = (ROOT / "docs" / "choosing.md").read_text()
    assert page == model_cards.fill(page), "run tests/benchmarks/model_cards.py"
    _, report = model_cards.read()
    line = next(line for line in page.splitlines() if line.startswith("| upscaling x2 | `waifu2x-x2` |"))
    (model,) = (model for model in report.models if model.model_id == "waifu2x-x2")
    assert [f"{model.psnr:.2f}", f"{model.gain_db:+.2f}"] == [cell.strip() for cell in line.split("|")[3:5]]
    assert report.failed == {}
