"""A trained model as a folder that diffusers opens."""

import pathlib
import shutil
import tempfile
from typing import Any

import jax
import ml_collections

from cranio_jax import __version__, data
from cranio_jax.errors import InputError
from cranio_jax.evaluation.results import read_results
from cranio_jax.files import buckets
from cranio_jax.methods import method_class
from cranio_jax.reporting import tables
from cranio_jax.reporting.notice import NOTICE
from cranio_jax.runs.state import restore

_CARD = "README.md"  # written last


def check_export(config: ml_collections.ConfigDict) -> None:
    """Raises InputError if the model isn't Stable Diffusion's."""
    if not method_class(config).writes_pipeline:
        raise InputError(
            f"job=export writes a diffusers pipeline, which {config.method.name} is not; the file "
            "of an embedder or an outline network is written by job=evaluate"
        )
    method_class(config).check_export(config)


def export(config: ml_collections.ConfigDict, workdir: pathlib.Path) -> pathlib.Path:
    """Writes the newest whole checkpoint as diffusers reads it, with a model card.

    Returns the folder. Raises InputError if the method's networks are not Stable Diffusion's, or
    the folder exists.
    """
    check_export(config)
    e = config.export
    folder = workdir / "export" / f"{e.weights}_{e.dtype}"
    # An export to a bucket may have been interrupted.
    if (folder / _CARD if buckets.is_remote(folder) else folder).exists():
        raise InputError(f"{folder} exists; remove it to export again")
    method, _, state, frozen, step = restore(config, workdir)
    params = (method.generation_params(state) if e.weights == "ema" else state["params"]) | frozen
    with buckets.local_folder(folder.parent, last=_CARD) as parent:
        parent.mkdir(parents=True, exist_ok=True)
        scratch = pathlib.Path(tempfile.mkdtemp(dir=parent, prefix="."))
        try:
            method.write_pipeline(scratch, params, state, e.dtype)
            (scratch / _CARD).write_text(_card(config, workdir, method, step))
            scratch.chmod(0o755)
            scratch.rename(parent / folder.name)
        except BaseException:
            shutil.rmtree(scratch)
            raise
    return folder


def _card(config: ml_collections.ConfigDict, workdir: pathlib.Path, method: Any, step: int) -> str:
    """Returns the model card."""
    t = config.train
    lines = [
        "# A face from a skull X-ray",
        f"**{NOTICE}**",
        (
            f"Trained with cranio_jax {__version__} (JAX {jax.__version__}), configuration"
            f" `{config.name}`, after Cranio-Diff (arXiv 2606.09699)."
        ),
        f"- started from {method.pipeline.name or 'scratch'}; trained: {', '.join(method.trained)}",
        f"- data: {data.records_name(config.data)}",
        (
            f"- step {step} of {t.num_steps}, batches of {t.batch_size}, AdamW at"
            f" {t.learning_rate:g} ({t.schedule}), weight decay {t.weight_decay:g}, EMA"
            f" {t.ema_decay:g}; weights here: {config.export.weights}, {config.export.dtype}"
        ),
        *method.describe(),
    ]
    path = workdir / "results.json"
    if path.exists():
        results = read_results(path)
        lines.append(f"Scores at step {results.step}, on people not in training:")
        lines.append(tables.markdown(results))
    return "\n\n".join(lines).replace("\n\n- ", "\n- ") + "\n"
