"""What the endpoint offers to people: pictures, videos, and the web page. It knows nothing of the Open Inference Protocol.

* ``operations``: the rows of the route table that belong to this room.
* ``pictures``: ``POST /v1/enhance``; ``images`` decodes and encodes PNG, JPEG and WebP.
* ``videos``: ``/v1/videos``; ``video_jobs`` holds the actors that run the jobs, ``video_job`` what is known of one.
* ``pages``: the web page (the files of ``page/``) and ``GET /v1/cache``.
"""

__all__: list[str] = []
