"""Videos that come and go through pipes, and cannot be planned.

* ``pipe``: opens Y4M and NUT, with the tracks of NUT. ``y4m``: reads and writes Y4M.
"""

__all__: list[str] = []
