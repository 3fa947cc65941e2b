"""python -m cranio_jax.main --config=configs/demo.py --workdir=DIR: flags, configuration, which job."""

import pathlib
import sys

from absl import app, flags, logging
from ml_collections import config_flags

from cranio_jax import evaluate, reconstruct, report, train
from cranio_jax.errors import InputError

CHECKOUT = pathlib.Path(__file__).resolve().parent.parent
JOBS = ("train_and_evaluate", "train", "evaluate", "reconstruct", "report")

_CONFIG = config_flags.DEFINE_config_file("config", None, "Experiment: a file of configs/, with :variant if it has some.")
_WORKDIR = flags.DEFINE_string("workdir", None, "Folder for checkpoints, results and the page.")


def find_config(arguments: list[str]) -> list[str]:
    """Points --config at the checkout's file where the current folder has none of that name."""
    found = []
    for argument in arguments:
        flag, _, value = argument.partition("=")
        path, colon, variant = value.partition(":")
        if flag.lstrip("-") == "config" and value and not pathlib.Path(path).exists():
            if not (CHECKOUT / path).exists():
                raise InputError(f"--config={path}: no such file in the current folder or the checkout")
            argument = f"{flag}={CHECKOUT / path}{colon}{variant}"
        found.append(argument)
    return found


def run(config, workdir: pathlib.Path) -> None:
    """Does `config.job`."""
    if config.job not in JOBS:
        raise InputError(f"job={config.job!r} is not one of {', '.join(JOBS)}")
    if config.job in ("train_and_evaluate", "train"):
        train.train(config, workdir)
    if config.job in ("train_and_evaluate", "evaluate"):
        print(evaluate.summary(evaluate.evaluate(config, workdir)))
    if config.job == "reconstruct":
        for folder in reconstruct.reconstruct(config, workdir):
            print(folder / "sheet.png")
        print(reconstruct.NOTICE)
    if config.job in ("train_and_evaluate", "evaluate", "report"):
        print(f"page: {report.report(config, workdir)}")


def main(_) -> None:
    """Runs the job that the flags ask for."""
    logging.set_verbosity(logging.ERROR)  # Orbax and TFDS tell pages; a progress line is enough
    run(_CONFIG.value, pathlib.Path(_WORKDIR.value).expanduser())


def cli() -> None:
    """Parses the flags and runs; wrong input ends in one sentence and exit code 2."""
    try:
        flags.mark_flags_as_required(["config", "workdir"])
        app.run(main, argv=find_config(sys.argv))
    except (InputError, train.NonFiniteLossError) as error:
        sys.exit(f"cranio_jax: {error}")
    except (AttributeError, KeyError, TypeError) as error:
        # ml_collections refuses a misspelt or mistyped override in one of these, before main runs.
        if _CONFIG.present and _CONFIG.value is not None and not isinstance(error, TypeError):
            raise
        sys.exit(f"cranio_jax: {error}")


if __name__ == "__main__":
    cli()
