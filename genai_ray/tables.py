"""Tables of plain values in files, CSV and Parquet, local or remote: manifests and results of jobs."""

from __future__ import annotations

import os
import re
import uuid
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.csv
import pyarrow.parquet

from genai_ray.errors import ConfigError
from genai_ray.files import FileFacts, file_errors, find_facts, is_remote, open_to_read, publish, temporary_folder

__all__ = ["ResultTable", "iter_rows"]

ROWS_AT_A_TIME = 4096

_DO = "Remove it, or choose another output folder."


def iter_rows(place: str, *, texts: Sequence[str] = ()) -> Iterator[dict[str, Any]]:
    """Read a table row by row; this needs little memory for a table of any length.

    Args:
        place: Path or URI of a file ending in .csv or .parquet.
        texts: Columns of a CSV file that stay as they are written; others become numbers or times if they look so.

    Yields:
        Values by column; empty cells are None.

    Raises:
        ConfigError: If the file is not a table.
        VideoError: If it is missing, or its store fails.
    """
    with open_to_read(place) as file:
        try:
            if place.lower().endswith(".csv"):
                options = pyarrow.csv.ConvertOptions(
                    strings_can_be_null=True, column_types=dict.fromkeys(texts, pa.string())
                )
                batches: Any = pyarrow.csv.open_csv(file, convert_options=options)
            else:
                batches = pyarrow.parquet.ParquetFile(file).iter_batches(batch_size=ROWS_AT_A_TIME)
            for batch in batches:
                yield from batch.to_pylist()
        except pa.ArrowInvalid as exc:
            raise ConfigError(
                f"{place}: not a table ({exc})", "a CSV file with a header line, or a Parquet file"
            ) from exc


class ResultTable:
    """A growing Parquet file: a longer file replaces it, so that a reader always sees a whole table.

    Args:
        place: Path or URI.
        columns: Arrow's type names by column name.
        key: Name of the key column; a row replaces an earlier row of the same key.

    Raises:
        ConfigError: If a file of this name is not such a table.
        VideoError: If its store fails.
    """

    def __init__(self, place: str, columns: Mapping[str, str], key: str) -> None:
        self.place = place
        self.key = key
        self._schema = pa.schema(
            [
                (name, pa.list_(pa.string()) if kind == "list" else pa.type_for_alias(kind))
                for name, kind in columns.items()
            ]
        )
        self._tables: list[pa.Table] = []
        self._keys: set[str] = set()
        self._seen: FileFacts | None = None
        self._earlier = self._schema.empty_table()
        self._partial = Path(place).with_name(f".results-{_machine()}-{os.getpid()}-{uuid.uuid4().hex[:8]}.partial")
        self._follow()

    def earlier(self, names: Sequence[str]) -> Iterator[tuple[Any, ...]]:
        """Return some columns of the rows that the file had before.

        Args:
            names: The columns.

        Yields:
            One tuple for each row.
        """
        yield from zip(*(self._earlier.column(name).to_pylist() for name in names), strict=True)

    def add(self, rows: Sequence[Mapping[str, Any]]) -> None:
        """Add rows: replace the file by one that also has them, and the rows that other jobs have added meanwhile.

        Args:
            rows: Values by column; missing columns are null.

        Raises:
            ConfigError: If the file is no longer such a table.
            VideoError: If writing fails.
        """
        self._follow()
        keys = self._keys | {str(row[self.key]) for row in rows}
        tables = [*self._tables, pa.Table.from_pylist([dict(row) for row in rows], schema=self._schema)]
        if len(tables) > 64:
            tables = [pa.concat_tables(tables).combine_chunks()]
        kept = pa.array([name not in keys for name in self._earlier.column(self.key).to_pylist()], pa.bool_())
        self._write(pa.concat_tables([self._earlier.filter(kept), *tables]))
        self._tables = tables
        self._keys = keys

    def _follow(self) -> None:
        """Read the file if it has changed."""
        facts = find_facts(self.place)
        if facts is not None and facts != self._seen:
            self._earlier = self._read()
            self._seen = facts

    def _read(self) -> pa.Table:
        with open_to_read(self.place) as file:
            try:
                table = pyarrow.parquet.read_table(file)
            except pa.ArrowInvalid as exc:
                raise ConfigError(f"{self.place}: not a Parquet file ({exc})", do=_DO) from exc
        missing = sorted(set(self._schema.names) - set(table.column_names))
        if missing:
            raise ConfigError(f"{self.place}: a table without the columns {missing}", do=_DO)
        return table.select(self._schema.names).cast(self._schema)

    def _write(self, table: pa.Table) -> None:
        if is_remote(self.place):
            with temporary_folder("results") as folder:
                self._replace(table, folder / self._partial.name)
        else:
            _remove_dead(self._partial.parent)
            self._replace(table, self._partial)

    def _replace(self, table: pa.Table, partial: Path) -> None:
        try:
            with file_errors(self.place, "writing"):
                pyarrow.parquet.write_table(table, partial)
                partial.chmod(0o644)
            mine = find_facts(str(partial))
            publish(partial, self.place)
            self._seen = find_facts(self.place) if is_remote(self.place) else mine
        finally:
            partial.unlink(missing_ok=True)


def _remove_dead(folder: Path) -> None:
    """Remove unfinished files of killed jobs of this machine."""
    name = re.compile(rf"\.results-{re.escape(_machine())}-(\d+)-[0-9a-f]+\.partial")
    for path in folder.glob(".results-*.partial"):
        if (found := name.fullmatch(path.name)) and not _is_alive(int(found[1])):
            with suppress(OSError):  # another user's file
                path.unlink(missing_ok=True)


def _machine() -> str:
    """Name this machine, or this container on it, whose process ids are unique."""
    spaces = Path("/proc/self/ns/pid")
    return f"{os.uname().nodename}-{spaces.stat().st_ino if spaces.exists() else 0}"


def _is_alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:  # another user's process
        return True
    return True
