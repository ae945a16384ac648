"""Tables of plain values in files: manifests that say what a job is to do, results that say what it did. CSV and Parquet, local or remote."""

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

__all__ = ["TABLE_SUFFIXES", "ResultTable", "iter_rows"]

TABLE_SUFFIXES = (".csv", ".parquet")
"""Of the files that are read as tables."""

ROWS_AT_A_TIME = 4096


def iter_rows(place: str) -> Iterator[dict[str, Any]]:
    """Read a table row by row; a table of any length takes little memory.

    Args:
        place: Path or URI of a file ending in .csv or .parquet.

    Yields:
        Values by column; empty cells are None.

    Raises:
        ConfigError: If it cannot be read as a table.
        VideoError: If it is missing, or its store fails.
    """
    with open_to_read(place) as file:
        try:
            if place.lower().endswith(".csv"):
                options = pyarrow.csv.ConvertOptions(strings_can_be_null=True)
                batches: Any = pyarrow.csv.open_csv(file, convert_options=options)
            else:
                batches = pyarrow.parquet.ParquetFile(file).iter_batches(batch_size=ROWS_AT_A_TIME)
            for batch in batches:
                yield from batch.to_pylist()
        except pa.ArrowInvalid as exc:
            raise ConfigError(
                f"{place}: not a table ({exc})", "a CSV file with a line of names, or a Parquet file"
            ) from exc


class ResultTable:
    """A Parquet file that grows: it is replaced by a longer one, so that a reader sees a whole table at any time.

    Args:
        place: Path or URI.
        columns: Arrow's names of the columns' types by the columns' names.
        key: Name of the column in which no two rows are equal; a later row replaces an earlier one.

    Raises:
        ConfigError: If there is a file of that name which is no such table.
        VideoError: If its store fails.
    """

    def __init__(self, place: str, columns: Mapping[str, str], key: str) -> None:
        self.place, self.key = place, key
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
        self._partial = Path(place).with_name(f".results-{_where()}-{os.getpid()}-{uuid.uuid4().hex[:8]}.partial")
        self._follow()

    def earlier(self, names: Sequence[str]) -> Iterator[tuple[Any, ...]]:
        """Give some columns of the rows that were there before.

        Args:
            names: The columns.

        Yields:
            One tuple a row.
        """
        yield from zip(*(self._earlier.column(name).to_pylist() for name in names), strict=True)

    def add(self, rows: Sequence[Mapping[str, Any]]) -> None:
        """Add rows, and replace the file by one that has them, and those that another job has added to it since.

        Args:
            rows: Values by column; those left out are null.

        Raises:
            ConfigError: If something else has taken the file's place.
            VideoError: If writing fails.
        """
        self._follow()
        keys = self._keys | {str(row[self.key]) for row in rows}
        tables = [*self._tables, pa.Table.from_pylist([dict(row) for row in rows], schema=self._schema)]
        if len(tables) > 64:
            tables = [pa.concat_tables(tables).combine_chunks()]
        kept = pa.array([name not in keys for name in self._earlier.column(self.key).to_pylist()], pa.bool_())
        self._write(pa.concat_tables([self._earlier.filter(kept), *tables]))
        self._tables, self._keys = tables, keys

    def _follow(self) -> None:
        """Read the file where it is another one than was last seen."""
        there = find_facts(self.place)
        if there is not None and there != self._seen:
            self._earlier, self._seen = self._read(), there

    def _read(self) -> pa.Table:
        with open_to_read(self.place) as file:
            try:
                table = pyarrow.parquet.read_table(file)
            except pa.ArrowInvalid as exc:
                raise ConfigError(
                    f"{self.place}: not a Parquet file ({exc})", do="Remove it, or choose another output folder."
                ) from exc
        missing = sorted(set(self._schema.names) - set(table.column_names))
        if missing:
            raise ConfigError(
                f"{self.place}: a table without the columns {missing}", do="Remove it, or choose another output folder."
            )
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
    """Remove what jobs of this machine that were killed had half-written."""
    name = re.compile(rf"\.results-{re.escape(_where())}-(\d+)-[0-9a-f]+\.partial")
    for path in folder.glob(".results-*.partial"):
        if (found := name.fullmatch(path.name)) and not _is_alive(int(found[1])):
            with suppress(OSError):  # somebody else's
                path.unlink(missing_ok=True)


def _where() -> str:
    """Name what numbers processes: this machine, or a container on it."""
    spaces = Path("/proc/self/ns/pid")
    return f"{os.uname().nodename}-{spaces.stat().st_ino if spaces.exists() else 0}"


def _is_alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:  # somebody else's
        return True
    return True
