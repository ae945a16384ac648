"""Local and remote files (``s3://``, ``gs://``, ``http://``, ``memory://``) with the same functions.

A *place* is a string: an absolute local path, or a URI with a scheme that fsspec knows. A remote file can be read at
any position: blocks are fetched when they are needed. A file is written whole or not at all. This package does not know
what the files contain. Only this package imports fsspec.

``places``: names, facts and folders of files. ``numbers``: numbered files as one input. ``transfer``: read, fetch,
publish, remove. ``store``: fsspec's file systems and their errors. ``mirror``: local copies of remote files. ``locks``
and ``sharing``: which process has a place, which machines share a folder. ``local``: temporary folders and the cache
folder. ``untrusted``: files that others name.
"""

from genai_ray.files.local import (
    cache_folder,
    home_folder,
    is_cache_lasting,
    is_private,
    make_folder,
    remove_folder,
    sweep_folders,
    temporary_base,
    temporary_folder,
    write_whole,
)
from genai_ray.files.locks import Lock, read_lock
from genai_ray.files.mirror import mirror
from genai_ray.files.numbers import find_source_facts, has_number, is_numbered, list_numbered
from genai_ray.files.places import (
    FileFacts,
    expand,
    find_facts,
    find_missing,
    is_folder,
    join_place,
    list_files,
    list_names,
    to_place,
)
from genai_ray.files.sharing import identify_folder, name_process_space
from genai_ray.files.store import describe_error, file_errors, is_remote
from genai_ray.files.transfer import (
    check_writable,
    discard,
    fetch,
    open_folder,
    open_to_read,
    publish,
    remove,
    sync_file,
)
from genai_ray.files.untrusted import fetch_untrusted, is_of_this_machine, open_below

__all__ = [
    "FileFacts",
    "Lock",
    "cache_folder",
    "check_writable",
    "describe_error",
    "discard",
    "expand",
    "fetch",
    "fetch_untrusted",
    "file_errors",
    "find_facts",
    "find_missing",
    "find_source_facts",
    "has_number",
    "home_folder",
    "identify_folder",
    "is_cache_lasting",
    "is_folder",
    "is_numbered",
    "is_of_this_machine",
    "is_private",
    "is_remote",
    "join_place",
    "list_files",
    "list_names",
    "list_numbered",
    "make_folder",
    "mirror",
    "name_process_space",
    "open_below",
    "open_folder",
    "open_to_read",
    "publish",
    "read_lock",
    "remove",
    "remove_folder",
    "sweep_folders",
    "sync_file",
    "temporary_base",
    "temporary_folder",
    "to_place",
    "write_whole",
]
