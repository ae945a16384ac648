"""Ray itself: start it or join it, and leave this process as it was.

* ``connect``: start or join. ``token``: Ray's authentication token. ``probe``: a cluster seen from outside.
* ``node``: Ray's processes on this machine: only those that are needed. ``stand_in``: the program that waits in the
  place of one of them.
* ``driver``: signals, output and import paths of this process, and what it says if Ray ends it.
* ``replies``: wait for an actor's reply, with our own errors.
"""

__all__: list[str] = []
