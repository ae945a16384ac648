"""The code blocks of the documents: what they are, which of their commands are run, and what else can be known of them.

A line ``<!-- not run: COMMAND (reason), COMMAND (reason) -->`` before a block of commands names those that no test
runs: the words that follow ``genai-ray``, or the name of another program; ``all`` for the whole block.
"""

import re
import shlex
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
PAGES = sorted([*ROOT.glob("*.md"), *(ROOT / "docs").rglob("*.md")])
KINDS = ("python", "py", "sh", "yaml", "json", "mermaid", "text")
FENCE = re.compile(
    r"(?:^<!-- not run: (?P<unrun>[^\n]*) -->\n)?^(?P<indent> *)```(?P<kind>[^\n]*)\n(?P<text>.*?)^ *```$",
    re.MULTILINE | re.DOTALL,
)
_SEPARATORS = {"&&", "||", "|", ";"}


@dataclass(frozen=True)
class Block:
    """A code block of a page."""

    page: Path
    line: int
    kind: str
    text: str
    unrun: tuple[tuple[str, str], ...]
    """Commands that are not run, and why."""

    def commands(self) -> list[list[str]]:
        """Return the words of each command of a shell block."""
        return [words for line in self.text.replace("\\\n", " ").splitlines() for words in split(line)]

    def is_run(self, words: list[str]) -> bool:
        """Tell whether a test runs a command."""
        said = " ".join(words[1:] if words[0] == "genai-ray" else words)
        return not any(start == "all" or said.startswith(start) for start, _ in self.unrun)


def blocks_of(page: Path) -> list[Block]:
    """Return the code blocks of a page."""
    text = page.read_text()
    return [
        Block(
            page,
            text.count("\n", 0, found.start()) + 1,
            found["kind"],
            found["text"],
            tuple(re.findall(r"(?:^|, )([^(]+) \(([^()]+)\)", found["unrun"] or "")),
        )
        for found in FENCE.finditer(text)
    ]


def split(line: str) -> list[list[str]]:
    """Return the commands of a line: their words, without comments and redirections."""
    lexer = shlex.shlex(line, posix=True, punctuation_chars=True)
    lexer.whitespace_split = True
    commands: list[list[str]] = [[]]
    words = iter(lexer)
    for word in words:
        if word in _SEPARATORS:
            commands.append([])
        elif word in (">", ">>", "<"):
            next(words)
        else:
            commands[-1].append(word)
    return [words for words in commands if words]


BLOCKS = [block for page in PAGES for block in blocks_of(page)]


def name_of(block: Block) -> str:
    """Name a block in the list of tests."""
    return f"{block.page.stem}:{block.line}"
