"""Compares synthesized faces with true ones: see launch/measure/synthesis.py."""

import pathlib
import sys

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parent.parent))

from launch.measure.synthesis import main

if __name__ == "__main__":
    main()
