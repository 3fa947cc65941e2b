"""The program: flags, configuration, and which job to run.

python -m cranio_jax.main --config=configs/demo.py --workdir=DIR
"""

import ast
import contextlib
import gc
import pathlib
import re
import sys
import traceback
from typing import Any

import jax
import ml_collections
from absl import app, flags, logging
from ml_collections import config_flags

from cranio_jax import __version__
from cranio_jax.distributed import cluster
from cranio_jax.errors import InputError
from cranio_jax.evaluation import evaluate
from cranio_jax.files import buckets
from cranio_jax.jobs import checks, export, inspect, reconstruct, status, synthesize
from cranio_jax.reporting import pages, tables
from cranio_jax.reporting.notice import NOTICE
from cranio_jax.training import loop

CHECKOUT = pathlib.Path(__file__).resolve().parent.parent
JOBS = {
    "train_and_evaluate": "trains, then scores the result and writes report.html (the default)",
    "train": "trains, or resumes from the newest checkpoint",
    "evaluate": "scores the newest checkpoint, or two folders of pictures",
    "reconstruct": "makes faces from X-ray files",
    "report": "writes report.html from existing results",
    "status": "shows the progress of a run",
    "export": "writes the model as a diffusers pipeline",
    "inspect": "looks at the data and writes inspect.html, before any training",
    "synthesize": "makes faces at other ages and weights of a list's photographs",
}
# The fields that most users set; configs/common.py explains all.
FIELDS = {
    "job": "what to do, see above",
    "data.builder": "the kind of records: cranio_phantom, skull_face, ct_heads, iit_mandi_s2f",
    "data.data_dir": "folder of the records",
    "data.settings.size": "side of the pictures, in pixels",
    "pretrained.model": "Stable Diffusion: a folder, a file or a hub id",
    "train.num_steps": "how long to train",
    "train.batch_size": "examples of a step, on all devices together",
    "train.learning_rate": "of AdamW",
    "evaluate.weights": "files of feature networks, for FID, LPIPS and ArcFace",
    "reconstruct.xrays": "X-ray files, with commas or wildcards",
}
# Blocks to which users may add fields, with a field's type: text, a number, or anything.
OPEN: dict[str, type] = {"method.files": str, "method.learning_rates": float}
OPEN |= dict.fromkeys(("method.scheduler", "method.unet", "method.controlnet"), object)
OPEN |= dict.fromkeys(("method.vae", "method.text_encoder"), object)
_OVERRIDE = re.compile(r"--?(no)?config\.(.+)\.(\w+)")
# The arguments; ml_collections looks for overrides here, and otherwise in sys.argv.
_ARGUMENTS: list[str] = []
# Jobs that all processes run together. The others run in one process, even during a training run.
TOGETHER = ("train_and_evaluate", "train", "evaluate")
# Errors that end the program with a sentence and no traceback.
EXPECTED = (InputError, loop.NonFiniteLossError, cluster.Preempted)
# Words in the errors of collectives and of the coordinator when another process is gone.
_OF_OTHERS = (
    *("UNAVAILABLE", "DEADLINE_EXCEEDED", "ABORTED", "Gloo", "NCCL", "closed by peer"),
    "heartbeat",
)

_CONFIG = config_flags.DEFINE_config_file(
    "config",
    None,
    "Experiment: a file of configs/, with :variant if it has any.",
    sys_argv=_ARGUMENTS,
)
_WORKDIR = flags.DEFINE_string("workdir", None, "Folder for checkpoints, results and the page.")


def find_config(arguments: list[str]) -> list[str]:
    """Points --config at the checkout's file if the current folder has none of that name."""
    resolved = []
    for argument in arguments:
        flag, _, value = argument.partition("=")
        path, colon, variant = value.partition(":")
        if flag.lstrip("-") == "config" and value and not pathlib.Path(path).exists():
            if not (CHECKOUT / path).exists():
                raise InputError(
                    f"--config={path}: no such file in the current folder or the checkout"
                )
            argument = f"{flag}={CHECKOUT / path}{colon}{variant}"
        resolved.append(argument)
    return resolved


def take_open(arguments: list[str]) -> tuple[list[str], dict[str, str]]:
    """Splits off the arguments that set a field of a block in OPEN.

    ml_collections sets only fields that a configuration has already, and these blocks may lack it.

    Returns:
      The other arguments, and the values by dotted name. As with absl's flags, a value may be an
      argument of its own, and a boolean field needs none.

    Raises:
      InputError: a field that holds text or a number has no value.
    """
    rest: list[str] = []
    taken: dict[str, str] = {}
    waiting = arguments[::-1]
    while waiting:
        argument = waiting.pop()
        flag, equals, value = argument.partition("=")
        no, block, leaf = parts.groups() if (parts := _OVERRIDE.fullmatch(flag)) else ("", "", "")
        kind = OPEN.get(block)
        if kind is None or (no and kind is not object):
            rest.append(argument)
            continue
        if not equals and not no and waiting and not re.match("--?[a-z]", waiting[-1]):
            value = waiting.pop()
        elif not equals and kind is object:
            value = str(not no)
        elif not equals:
            raise InputError(f"{flag}: it has no value. Write {flag}=VALUE.")
        taken[f"{block}.{leaf}"] = value
    return rest, taken


def set_open(config: ml_collections.ConfigDict, taken: dict[str, str]) -> None:
    """Sets fields from `take_open`.

    Raises InputError if the configuration has no such block, or a field is of another type.
    """
    for name, text in taken.items():
        block, _, leaf = name.rpartition(".")
        fields = config.method.get(block.removeprefix("method."))
        if not isinstance(fields, ml_collections.ConfigDict):
            method = config.method.get("name", config.name)
            raise InputError(f"--config.{name}: {method} has no {block}. Remove it.")
        present = fields.get(leaf)
        try:
            value = _read(text, OPEN[block], present)
            with config.unlocked(), _either_type(fields, present, value):
                fields[leaf] = value
        except (TypeError, ValueError):
            like = "a number, such as 1e-5" if OPEN[block] is float else f"one like {present!r}"
            raise InputError(f"--config.{name}={text}: wrong type of value. Use {like}.") from None


def _either_type(
    fields: ml_collections.ConfigDict, present: Any, value: Any
) -> contextlib.AbstractContextManager:
    """Returns a context in which a value for each block may replace one for all."""
    if isinstance(value, tuple) and value and all(type(v) is type(present) for v in value):
        return fields.ignore_type()
    return contextlib.nullcontext()


def _read(text: str, kind: type, present: Any) -> Any:
    """Reads a flag's value: text, a number, or a Python literal (text if it is none).

    Raises ValueError if it is not the number that it should be.
    """
    if kind is str or isinstance(present, str):
        return text
    if kind is float:
        return float(text)
    if text.lower() in ("true", "false"):
        return text.lower() == "true"
    try:
        value = ast.literal_eval(text)
    except (ValueError, SyntaxError):
        return text
    return tuple(value) if isinstance(value, list) else value


def usage() -> str:
    """Returns what --help prints."""
    jobs = "\n".join(f"  {name:<20}{words}" for name, words in JOBS.items())
    fields = "\n".join(f"  {name:<22}{words}" for name, words in FIELDS.items())
    return f"""\
usage: python -m cranio_jax.main --config=FILE[:VARIANT] --workdir=DIR [--config.FIELD=VALUE ...]

--config is one of configs/, such as configs/demo.py or configs/demo.py:smoke. --workdir is the
folder for checkpoints, results and pages; it may be gs://BUCKET/FOLDER. Without it, `reconstruct`
uses published weights as they are, and writes to the current folder.

Jobs, --config.job=
{jobs}

Fields that matter most, --config.FIELD=VALUE (configs/common.py explains all of them)
{fields}

--version prints the version, --helpfull all flags of all libraries."""


def run(config: ml_collections.ConfigDict, workdir: pathlib.Path | None) -> None:
    """Runs `config.job`; only `reconstruct` needs no workdir.

    Raises InputError if a setting is wrong, before anything is built.
    """
    if config.job not in JOBS:
        raise InputError(f"job={config.job!r} is not one of {', '.join(JOBS)}")
    if workdir is None and config.job != "reconstruct":
        raise InputError(f"--workdir is missing. Name the folder of the run for job={config.job}.")
    checks.check(config)
    if config.job == "reconstruct":
        for folder in reconstruct.reconstruct(config, workdir):
            print(folder / "sheet.png")
        print(NOTICE)
    elif workdir is not None:
        _run_in(config, workdir)


def _run_in(config: ml_collections.ConfigDict, workdir: pathlib.Path) -> None:
    """Runs a job that needs a workdir."""
    if config.job in ("train_and_evaluate", "train"):
        loop.train(config, workdir)
    if config.job in ("train_and_evaluate", "evaluate"):
        results = evaluate.evaluate(config, workdir)
        if not cluster.is_first():
            return
        tables.write(results, workdir)
        print(tables.text(results))
    if config.job == "status":
        print(status.status(workdir))
    if config.job == "inspect":
        print(inspect.text(inspect.inspect(config, workdir)))
        print(f"page: {workdir / 'inspect.html'}")
    if config.job == "synthesize":
        print(f"list: {synthesize.synthesize(config, workdir)}")
    if config.job == "export":
        print(export.export(config, workdir))
    if config.job in ("train_and_evaluate", "evaluate", "report"):
        print(f"page: {pages.report(config, workdir)}")


def main(_) -> None:
    """Runs the job that the flags ask for."""
    # Orbax and TFDS log pages. The progress line is enough, and failures are raised too.
    logging.set_verbosity(logging.FATAL)
    workdir = buckets.open_folder(_WORKDIR.value, "--workdir") if _WORKDIR.value else None
    if jax.config.jax_compilation_cache_dir is None:  # type: ignore[attr-defined]
        # The next start then compiles little. By default JAX caches compilations of a second, which
        # leaves out many small programs.
        compiled = (workdir or buckets.usual_cache()) / "compiled"
        jax.config.update("jax_compilation_cache_dir", str(compiled))
        jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.2)
    if _CONFIG.value.job in TOGETHER:
        cluster.join()
    try:
        with buckets.sentences(f"--workdir={workdir or '.'}"):
            run(_CONFIG.value, workdir)
    except Exception as error:
        if not jax.distributed.is_initialized() or jax.process_count() == 1:
            raise
        _leave(error)


def parse(arguments: list[str]) -> list[str]:
    """Parses the flags. Raises InputError if one is unknown, missing or of the wrong type."""
    try:
        _ARGUMENTS[:], taken = take_open(find_config(arguments))
        rest = flags.FLAGS(_ARGUMENTS)
        if _CONFIG.value is not None:
            set_open(_CONFIG.value, taken)
        return rest
    except (AttributeError, IndexError, KeyError, TypeError) as error:
        raise InputError("--config: " + " ".join(str(error.args[0]).split())) from None
    except flags.Error as error:
        raise InputError(" ".join(str(error).split())) from None


def _leave(error: Exception) -> None:
    """Ends one of several processes. It can't wait for the others, which may wait for it."""
    who = f"cranio_jax, process {jax.process_index()} of {jax.process_count()}"
    if isinstance(error, cluster.Preempted):
        cluster.leave(f"{who}: {error}", cluster.START_AGAIN)
    elif isinstance(error, EXPECTED):
        cluster.leave(f"{who}: {error}", 1)
    elif _is_of_others(error):
        reason = str(error).splitlines()[0][:200]
        cluster.leave(
            f"{who}: another process is gone ({reason}); restart all", cluster.START_AGAIN
        )
    else:
        cluster.leave("".join(traceback.format_exception(error)) + f"{who}: failed, see above", 1)


def _is_of_others(error: Exception) -> bool:
    """Returns True if an error says that another process is gone."""
    words = str(error)
    is_runtime = isinstance(error, jax.errors.JaxRuntimeError)
    return is_runtime and any(word in words for word in _OF_OTHERS)


def cli() -> None:
    """Runs the program.

    Wrong input ends in one sentence and exit code 1, a notice of preemption in
    `cluster.START_AGAIN`.
    """
    if {"--help", "-help", "-h"} & set(sys.argv[1:]):
        print(usage())
        return
    if "--version" in sys.argv[1:]:
        print(f"cranio_jax {__version__}")
        return
    sys.path.append(str(CHECKOUT))  # a configuration may import its neighbours in configs/
    flags.mark_flags_as_required(["config"])
    try:
        app.run(main, flags_parser=parse)
    except EXPECTED as error:
        sentence = f"cranio_jax: {error}"
        code = cluster.START_AGAIN if isinstance(error, cluster.Preempted) else 1
    else:
        return
    gc.collect()  # a write that was cut off warns when it is freed; the sentence comes last
    print(sentence, file=sys.stderr)
    sys.exit(code)


if __name__ == "__main__":
    cli()
