"""Several models on a few frames of one video: how they look, how long they take, how true they are.

``run`` enhances the frames and measures; ``sheet`` draws the results as one picture; ``page`` writes them as one HTML
file with sliders.
"""

from genai_ray.trials.page import write_page
from genai_ray.trials.run import ModelTrial, Trials, try_models
from genai_ray.trials.sheet import write_sheet

__all__ = ["ModelTrial", "Trials", "try_models", "write_page", "write_sheet"]
