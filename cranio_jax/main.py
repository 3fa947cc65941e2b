"""python -m cranio_jax.main --config=configs/demo.py --workdir=DIR: flags, configuration, which job."""

import pathlib
import sys

from absl import app, flags, logging
from ml_collections import config_flags

from cranio_jax import evaluate, export, inspect, reconstruct, report, tables, train
from cranio_jax.errors import InputError

CHECKOUT = pathlib.Path(__file__).resolve().parent.parent
JOBS = ("train_and_evaluate", "train", "evaluate", "reconstruct", "report", "export", "inspect")

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
        print(tables.text(evaluate.evaluate(config, workdir)))
    if config.job == "inspect":
        print(inspect.text(inspect.inspect(config, workdir)))
        print(f"page: {workdir / 'inspect.html'}")
    if config.job == "export":
        print(export.export(config, workdir))
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


def parse(arguments: list[str]) -> list[str]:
    """Parses the flags; ml_collections' words on a misspelt or mistyped override become the error."""
    try:
        return flags.FLAGS(find_config(arguments))
    except (AttributeError, KeyError, TypeError) as error:
        raise InputError("--config: " + " ".join(str(error.args[0]).split())) from None


def cli() -> None:
    """Runs; wrong input ends in one sentence and an exit code that is not 0."""
    sys.path.append(str(CHECKOUT))  # a configuration may import its neighbours in configs/
    flags.mark_flags_as_required(["config", "workdir"])
    try:
        app.run(main, flags_parser=parse)
    except (InputError, train.NonFiniteLossError) as error:
        sys.exit(f"cranio_jax: {error}")


if __name__ == "__main__":
    cli()
