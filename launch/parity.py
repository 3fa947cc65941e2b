"""Compares the networks with PyTorch's: see launch/measure/parity.py."""

import pathlib
import sys

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parent.parent))

from launch.measure.parity import main

if __name__ == "__main__":
    main()
