"""Every notebook runs from a fresh kernel, as a person runs it, and shows what it says."""

from pathlib import Path

import nbformat
import pytest
from nbclient import NotebookClient

FOLDER = Path(__file__).resolve().parents[1] / "notebooks"
PATHS = sorted(FOLDER.glob("*.ipynb"))
JOINED = "02_video_batch"
"""The notebook that joins whatever cluster runs: here the one that tests share, otherwise one of its own."""
BOTH_WAYS = "04_compare_models"
"""The notebook without Ray Data: it runs in the cluster that tests share, and over Ray Client
(tests/cluster/test_connect.py)."""
MAX_BYTES = 200_000


@pytest.mark.parametrize("path", PATHS, ids=lambda path: path.stem)
def test_it_is_kept_small_with_outputs_and_ends_with_a_check(path):
    notebook = nbformat.read(path, as_version=4)
    cells = [cell for cell in notebook.cells if cell.cell_type == "code"]
    assert "\nassert " in cells[-1].source
    outputs = [output for cell in cells for output in cell.outputs]
    assert any("image/png" in output.get("data", {}) for output in outputs)
    assert {output.output_type for output in outputs} <= {"stream", "display_data", "execute_result"}
    assert path.stat().st_size <= MAX_BYTES


def execute(path, **options):
    notebook = nbformat.read(path, as_version=4)
    NotebookClient(notebook, timeout=300, resources={"metadata": {"path": str(FOLDER)}}).execute(**options)
    return [output.get("data", {}) for cell in notebook.cells for output in cell.get("outputs", ())]


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")  # Jupyter's own
@pytest.mark.parametrize(
    "path",
    [pytest.param(path, marks=pytest.mark.longest if path.stem in (JOINED, BOTH_WAYS) else ()) for path in PATHS],
    ids=lambda path: path.stem,
)
def test_it_runs(path):
    shown = execute(path)
    if path.stem == "01_first_frames":  # a job tells its progress, with nothing asked for
        (bar,) = [data for data in shown if data.get("text/html", "").startswith("<progress")]
        assert bar["text/plain"].startswith("done: 25 of 25 frames, ")


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("stem", [JOINED, BOTH_WAYS])
def test_it_runs_in_a_cluster_that_it_did_not_start(in_shared_ray, monkeypatch, stem):
    monkeypatch.setenv("RAY_ADDRESS", in_shared_ray["RAY_ADDRESS"])
    execute(FOLDER / f"{stem}.ipynb")
