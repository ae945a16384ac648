"""The endpoint for people: pictures, videos, and the web page.

* ``pictures``: ``POST /v1/enhance`` and ``GET /v1/models``; ``images`` decodes and encodes PNG, JPEG and WebP.
* ``videos``: ``/v1/videos``; ``video_jobs`` is the actor that keeps all jobs, ``video_job`` one job and its actor.
* ``pages``: the web page (the files of ``page/``) and ``GET /v1/cache``.
"""

__all__: list[str] = []
