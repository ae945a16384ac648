"""Scenes of a video: where one ends and the next one begins.

``transnet`` finds cuts, fades and dissolves by a network; ``similarity`` finds hard cuts alone, almost for free.
``scenes`` lists the scenes of a video, and ``edl`` writes them as an edit decision list.
"""

from genai_ray.scenes.edl import MAX_EVENTS, build_edl
from genai_ray.scenes.scenes import Scene, SceneList, find_scenes, list_scenes
from genai_ray.scenes.similarity import SCENE_THRESHOLD, is_cut, thumbnail
from genai_ray.scenes.transnet import MODEL, PROBABILITY, CutFinder, check_probability, count_windows

__all__ = [
    "MAX_EVENTS",
    "MODEL",
    "PROBABILITY",
    "SCENE_THRESHOLD",
    "CutFinder",
    "Scene",
    "SceneList",
    "build_edl",
    "check_probability",
    "count_windows",
    "find_scenes",
    "is_cut",
    "list_scenes",
    "thumbnail",
]
