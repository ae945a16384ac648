"""Several models on a few frames of one video: how they look, how long they take, how true they are.

``run`` enhances the frames and measures; ``sheet`` draws the results as one picture; ``page`` makes one HTML file with
sliders of them.
"""

from genai_ray.trials.page import build_page
from genai_ray.trials.run import ModelTrial, Trials, try_models
from genai_ray.trials.sheet import draw_sheet

__all__ = ["ModelTrial", "Trials", "build_page", "draw_sheet", "try_models"]
