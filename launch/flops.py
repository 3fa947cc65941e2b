"""Counts floating-point operations: see launch/measure/flops.py."""

import pathlib
import sys

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parent.parent))

from launch.measure.flops import main

if __name__ == "__main__":
    main()
