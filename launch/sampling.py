"""Measures what each setting of the sampler does to the faces: see launch/measure/sampling.py."""

import pathlib
import sys

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parent.parent))

from launch.measure.sampling import main

if __name__ == "__main__":
    main()
