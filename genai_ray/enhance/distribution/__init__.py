"""What a job needs only if its nodes share no folder.

* ``shared_folders``: where the folders of a job are, and what is brought back to them.
"""

__all__: list[str] = []
