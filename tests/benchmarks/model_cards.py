"""What packaged models gain and cost: ``evaluate_models`` on the packaged clips, and the table of docs/choosing.md.

model_cards.py: measures, and writes results/model_cards.json and the table. A test holds that both agree.
"""

import json
import os
from pathlib import Path

from genai_ray.evaluation import Baseline, EvaluationReport, ModelEvaluation
from genai_ray.types import ModelTask

ROOT = Path(__file__).resolve().parents[2]
PAGE = ROOT / "docs" / "choosing.md"
RESULT = ROOT / "tests" / "benchmarks" / "results" / "model_cards.json"
BEGIN, END = "<!-- model_cards -->\n", "<!-- end -->\n"


def read():
    """Return what was kept, and its report."""
    kept = json.loads(RESULT.read_text())
    told = {name: kept[name] for name in EvaluationReport.__dataclass_fields__}
    told["models"] = tuple(map(ModelEvaluation.from_dict, told["models"]))
    told["baselines"] = tuple(Baseline(**one | {"task": ModelTask(one["task"])}) for one in told["baselines"])
    return kept, EvaluationReport(**told)


def fill(page):
    """Return the page with the table of what was kept."""
    kept, report = read()
    ids = {model.model_id for model in report.models}
    rows = [[f"`{cell}`" if cell in ids else cell for cell in row] for row in (report.header, *report.rows())]
    lines = ["| " + " | ".join(row) + " |" for row in rows]
    lines.insert(1, "|---|---|" + "---:|" * (len(report.header) - 2))
    about = f"{report.frames} frames, {report.date}, {report.device}, {kept['machine']['cores']} cores"
    load = f"load {kept['load_average'][0]:.1f} before and {kept['load_average'][1]:.1f} after"
    table = "\n".join(lines) + f"\n\nMeasured on {about}; {load}: other programs make frames/s lower.\n"
    before, _, rest = page.partition(BEGIN)
    return before + BEGIN + table + END + rest.partition(END)[2]


def main():
    from common import keep

    from genai_ray import ModelCatalog, evaluate_models

    catalog = ModelCatalog.default()
    packaged = [model_id for model_id in catalog.ids() if catalog.get(model_id).url is None]
    load = [os.getloadavg()[0]]
    report = evaluate_models(packaged, on_model=lambda model, done, total: print(model, done + 1, total, flush=True))
    load.append(os.getloadavg()[0])
    rows = [(" ".join(row[:2]), " ".join(row[2:])) for row in report.rows()]
    keep("model_cards", report.to_dict() | {"load_average": load}, rows)
    print(report.failed)
    PAGE.write_text(fill(PAGE.read_text()))


if __name__ == "__main__":
    main()
