"""``python -m genai_ray.cli``."""

from genai_ray.cli import main

main()
