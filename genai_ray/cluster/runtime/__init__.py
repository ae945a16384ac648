"""Ray itself: start it or join it, and leave this process as it was.

* ``connect``: start or join. ``token``: Ray's authentication token. ``probe``: a cluster seen from outside.
* ``driver``: signals, output and import paths of this process, and what it says if Ray ends it.
* ``replies``: wait for an actor's reply, with our own errors.
"""

__all__: list[str] = []
