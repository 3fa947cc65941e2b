"""Times training, sampling and loading: see launch/measure/benchmark.py."""

import pathlib
import sys

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parent.parent))

from launch.measure.benchmark import main

if __name__ == "__main__":
    main()
