"""Measures what each word of the prompt does to a face: see launch/measure/prompt_words.py."""

import pathlib
import sys

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parent.parent))

from launch.measure.prompt_words import main

if __name__ == "__main__":
    main()
