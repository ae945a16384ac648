"""Fills the page of all commands with what Typer says of them, and that of security with SECURITY.md."""

import subprocess
import sys
from pathlib import Path
from typing import Any


def on_page_markdown(markdown: str, page: Any, **_: Any) -> str:
    """Return a page's Markdown; that of the two pages is made here."""
    if page.file.src_uri == "security.md":
        return (Path(__file__).parents[1] / "SECURITY.md").read_text().replace("](docs/", "](")
    if page.file.src_uri != "reference/commands.md":
        return markdown
    command = [sys.executable, "-m", "typer", "genai_ray.cli", "utils", "docs", "--name", "genai-ray"]
    told = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    return told.replace("# `genai-ray`", markdown, 1)
