"""Prints the tables of launch/SCALING.md: see launch/measure/scaling.py."""

import pathlib
import sys

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parent.parent))

from launch.measure.scaling import main

if __name__ == "__main__":
    main()
