"""Trains every method of a study with every seed, scores them, and writes one comparison.

python launch/study.py --study=configs/study_phantom.py --workdir=DIR [--weights=DIR] \
    [--at_once=N] [--cell=K] [--config.FIELD=VALUE ...]

A cell is one method with one seed: a run of cranio_jax.main in its own folder. A cell that fails is
reported and does not stop the others. Started again, a study continues; finished cells are not
repeated.

  --list         prints the cells with their numbers
  --cell=K       runs one cell. An array of jobs can share the work, or several machines with one
                 DIR or copies of it
  --compare      runs nothing, and compares the finished cells
  --at_once=2    runs two cells at a time on one machine, each method's on half of the cores. A
                 small network is trained as fast by one core as by all of them
  --seeds=0,1,2  replaces the seeds of the study and of its methods

Other `--config.` flags are passed to every cell, e.g. your own data.
"""

import argparse
import dataclasses
import importlib.util
import itertools
import json
import os
import pathlib
import subprocess
import sys
import time
from collections.abc import Iterable, Iterator, Mapping
from concurrent import futures

import ml_collections

ROOT = pathlib.Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from cranio_jax.errors import InputError
from cranio_jax.evaluation import comparison
from cranio_jax.evaluation import results as schema
from cranio_jax.evaluation.results import Results, read_comparison, read_results
from cranio_jax.files import buckets
from cranio_jax.files.atomic import write_json
from cranio_jax.reporting import pages, tables
from cranio_jax.runs.log import logged

EMBEDDER = "embedder.safetensors"


@dataclasses.dataclass(frozen=True)
class Cell:
    """A method with a seed.

    Attributes:
      name: of the method.
      seed: of the run.
      folder: the run's workdir.
      flags: the run's flags. `{name}` stands for the file of another cell's embedder, `{weights}`
        for the folder of your weights.
      weights: that folder.
      needs: the cells whose embedders the flags name.
    """

    name: str
    seed: int
    folder: pathlib.Path
    flags: tuple[str, ...]
    weights: pathlib.Path
    needs: tuple["Cell", ...] = ()

    @property
    def begun_otherwise(self) -> bool:
        """Whether the folder holds a run with other flags."""
        file = self.folder / "flags.json"
        return file.exists() and json.loads(file.read_text()) != list(self.flags)

    @property
    def done(self) -> bool:
        """Whether the folder holds the results of these flags."""
        return (self.folder / "results.json").exists() and not self.begun_otherwise

    @property
    def log(self) -> pathlib.Path:
        """The file with the run's output."""
        return self.folder / "log.txt"

    def program_flags(self) -> list[str]:
        """Returns the flags with files filled in, and the seed."""
        files = {cell.name: str(cell.folder / EMBEDDER) for cell in self.needs}
        files["weights"] = str(self.weights)
        return [*(flag.format(**files) for flag in self.flags), f"--config.seed={self.seed}"]

    def command(self) -> list[str]:
        """Returns the command that runs the cell."""
        program = [sys.executable, "-m", "cranio_jax.main"]
        return [*program, *self.program_flags(), f"--workdir={self.folder}"]


def read_study(name: str) -> ml_collections.ConfigDict:
    """Returns the configuration of `FILE` or `FILE:VARIANT`.

    Raises InputError if there is no such file or variant.
    """
    file, _, variant = name.partition(":")
    path = next((p for p in (pathlib.Path(file), ROOT / file) if p.exists()), None)
    if path is None:
        raise InputError(
            f"--study={file}: no such file in the current folder or the checkout. "
            "Name a file of configs/."
        )
    spec = importlib.util.spec_from_file_location("study", path)
    if spec is None or spec.loader is None:
        raise InputError(f"--study={file}: it is not a Python file. Name a file of configs/.")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    try:
        return module.get_config(variant)
    except ValueError as error:
        raise InputError(str(error)) from None


def cells_of(
    study: ml_collections.ConfigDict,
    workdir: pathlib.Path,
    weights: pathlib.Path,
    more: list[str],
) -> list[Cell]:
    """Returns all cells of a study.

    The helpers come first. They are embedders and have one seed.

    Args:
      study: see configs/study_phantom.py. A method may have `seeds` of its own, of the study's.
        `other_xrays` names methods that see other X-rays of the same people, such as dry skulls.
      workdir: of the study.
      weights: folder of your weights.
      more: flags for every cell.
    """
    helpers = {}
    for helper in study.helpers:
        helpers[helper["name"]] = Cell(
            name=helper["name"],
            seed=helper["seed"],
            folder=workdir / "cells" / helper["name"],
            flags=_program_flags(helper["config"], (study.flags, helper["flags"]), more),
            weights=weights,
        )
    cells = list(helpers.values())
    for seed in study.seeds:
        for method in study.methods:
            if seed not in method.get("seeds", study.seeds):
                continue
            settings = (study.flags, study.method_flags, method["flags"])
            flags = _program_flags(method["config"], settings, more)
            cells.append(
                Cell(
                    name=method["name"],
                    seed=seed,
                    folder=workdir / "cells" / f"{method['name'].replace(' ', '_')}_{seed}",
                    flags=flags,
                    weights=weights,
                    needs=_needed(helpers, flags),
                )
            )
    return cells


def _program_flags(
    config: str, settings: Iterable[Iterable[str]], more: Iterable[str]
) -> tuple[str, ...]:
    """Returns the program's flags: a configuration, a study's settings of it, and others."""
    fields = itertools.chain.from_iterable(settings)
    return (f"--config={config}", *(f"--config.{field}" for field in fields), *more)


def _needed(helpers: Mapping[str, Cell], flags: Iterable[str]) -> tuple[Cell, ...]:
    """Returns the helpers that the flags name."""
    text = " ".join(flags)
    return tuple(cell for name, cell in helpers.items() if "{" + name + "}" in text)


def run(cell: Cell) -> str:
    """Runs a cell. Returns why it failed, or an empty text."""
    # Check what is there.
    for helper in cell.needs:
        if not (helper.folder / EMBEDDER).exists():
            return f"needs the embedder of {helper.name}, which does not exist"
    cell.folder.mkdir(parents=True, exist_ok=True)
    if cell.begun_otherwise:
        return f"{cell.folder} was started with other flags. Remove it or use another --workdir."
    write_json(cell.folder / "flags.json", list(cell.flags))
    # Run. Cells share compiled programs, of which many are small.
    cache = {
        "JAX_COMPILATION_CACHE_DIR": str(cell.folder.parent / "compiled"),
        "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0.2",
    }
    with open(cell.log, "ab") as log:
        process = subprocess.run(
            cell.command(),
            cwd=ROOT,
            stdout=log,
            stderr=subprocess.STDOUT,
            env=cache | os.environ,
            check=False,
        )
    # Report.
    if process.returncode:
        lines = cell.log.read_text(errors="replace").strip().splitlines()
        reason = lines[-1] if lines else "no output"
        return f"{reason} (exit {process.returncode}; see {cell.log})"
    return "" if cell.done else f"ended without results; see {cell.log}"


def cost(cell: Cell, results: Results) -> dict[str, float]:
    """Returns the costs of a run, as far as they are known.

    These are `parameters`, `images` seen in training, `seconds` of training, `training_tflop`,
    `face_tflop` and `face_seconds`.
    """
    images = (results.step or 0) * results.config["train"]["batch_size"]
    costs: dict[str, float] = {
        "parameters": sum((results.parameters or {}).values()),
        "images": images,
    }
    field = "images_per_second"
    rates = [line[field] for line in logged(cell.folder) if field in line]
    if rates:
        costs["seconds"] = images / rates[-1]
    operations = _operations(cell)
    if operations is None:
        return costs
    costs["training_tflop"] = operations["train"] * images
    if "generate" in operations:
        costs["face_tflop"] = operations["generate"]
    if results.seconds_per_face:
        costs["face_seconds"] = results.seconds_per_face
    return costs


def _operations(cell: Cell) -> dict[str, float] | None:
    """Returns TFLOP as launch/flops.py counts them, or None if it fails; keeps them in a file."""
    file = cell.folder / "operations.json"
    if not file.exists():
        command = [sys.executable, str(ROOT / "launch" / "flops.py"), *cell.program_flags()]
        process = subprocess.run(command, cwd=ROOT, capture_output=True, check=False)
        if process.returncode:
            return None
        write_json(file, json.loads(process.stdout))
    return json.loads(file.read_text())


def compare(
    study: ml_collections.ConfigDict, cells: list[Cell], workdir: pathlib.Path
) -> pathlib.Path | None:
    """Compares the finished cells.

    It writes study.json, table.md, table.tex and study.html. Returns the path of the last, or None
    if no cell is finished but those of other X-rays.
    """
    # Read the results of each method.
    finished = {
        method["name"]: [cell for cell in cells if cell.name == method["name"] and cell.done]
        for method in study.methods
    }
    runs = {
        name: [read_results(cell.folder / "results.json") for cell in done]
        for name, done in finished.items()
    }
    others = study.get("other_xrays", ())
    if not any(done for name, done in runs.items() if name not in others):
        return None
    # Compare them.
    results = comparison.compare(
        runs,
        study.headline,
        study.baselines,
        study.bootstrap,
        other_xrays=others,
    )
    results.costs = {
        name: cost(finished[name][0], own_runs[0]) for name, own_runs in runs.items() if own_runs
    }
    results.seeds = {name: [cell.seed for cell in done] for name, done in finished.items()}
    results.study = study.name
    # Write.
    schema.write(workdir / "study.json", results)
    tables.write(results, workdir)
    folders = {name: [cell.folder for cell in done] for name, done in finished.items() if done}
    return pages.study(results, folders, workdir)


def run_and_report(number: int, cell: Cell, count: int) -> bool:
    """Runs a cell unless it is finished, and prints how it ended. Returns whether it failed."""
    title = f"cell {number} of {count}: {cell.name}, seed {cell.seed}"
    if cell.done:
        print(f"{title}: finished before", flush=True)
        return False
    print(f"{title}: running, see {cell.log}", flush=True)
    start = time.monotonic()
    problem = run(cell)
    minutes, seconds = divmod(round(time.monotonic() - start), 60)
    if problem:
        print(f"{title}: FAILED, {problem}", flush=True)
    else:
        print(f"{title}: done in {minutes}:{seconds:02d}", flush=True)
    return bool(problem)


def _run_together(numbered: list[tuple[int, Cell]], count: int, at_once: int, share: bool) -> int:
    """Runs cells, some at a time, on all cores or each on its share. Returns how many failed."""
    numbers = itertools.count()

    def begin() -> None:
        if share:
            _take_cores(numbers, at_once)

    def run_one(pair: tuple[int, Cell]) -> bool:
        number, cell = pair
        return run_and_report(number, cell, count)

    with futures.ThreadPoolExecutor(at_once, initializer=begin) as pool:
        return sum(pool.map(run_one, numbered))


def _take_cores(numbers: Iterator[int], at_once: int) -> None:
    """Binds a worker to its share of the cores, which the runs that it starts inherit."""
    if at_once > 1 and hasattr(os, "sched_setaffinity"):
        cores = sorted(os.sched_getaffinity(0))
        os.sched_setaffinity(0, cores[next(numbers) % len(cores) :: at_once])


def _seeds(text: str) -> list[int]:
    return [int(seed) for seed in text.split(",")]


def _parser() -> argparse.ArgumentParser:
    # Without abbreviations: --seed=3 as an abbreviation of --seeds=3 would start a study of days.
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0], allow_abbrev=False)
    parser.add_argument(
        "--study", required=True, help="a file of configs/, with :VARIANT if it has variants"
    )
    parser.add_argument("--workdir", required=True, help="a local folder")
    parser.add_argument(
        "--weights", default="", help="folder of your weights, if the study needs any"
    )
    parser.add_argument("--seeds", type=_seeds, help="in place of the study's own")
    parser.add_argument("--cell", type=int, help="run this cell only, and compare nothing")
    parser.add_argument(
        "--at_once",
        type=int,
        default=1,
        help="run this many cells at a time, each on its share of the cores",
    )
    parser.add_argument("--compare", action="store_true", help="run nothing")
    parser.add_argument("--list", action="store_true", help="number the cells")
    return parser


def main() -> None:
    """Runs a study as the command line says."""
    # Read the command line.
    parser = _parser()
    options, more = parser.parse_known_args()
    unknown = [flag for flag in more if not flag.startswith("--config.")]
    if unknown:
        parser.error(f"{unknown[0]} is not a study flag. Flags of its cells begin with --config.")
    if buckets.is_remote(options.workdir):
        raise InputError(
            f"--workdir={options.workdir}: a study keeps its cells and logs on a disk. Name a "
            "local folder, and copy it to the bucket afterwards."
        )
    workdir = pathlib.Path(options.workdir).expanduser().resolve()
    weights = pathlib.Path(options.weights).expanduser().resolve()
    study = read_study(options.study)
    if options.seeds:
        study.seeds = options.seeds
        study.methods = tuple(
            {key: value for key, value in method.items() if key != "seeds"}
            for method in study.methods
        )
    cells = cells_of(study, workdir, weights, more)
    _check(parser, options, study, cells)
    if options.list:
        for number, cell in enumerate(cells):
            print(f"{number:3d}  {cell.name}, seed {cell.seed}{', finished' if cell.done else ''}")
        return

    # Run the cells. Helpers come first, since others name their embedders. They have all cores: the
    # first builds the records, for which the others wait. Without helpers, a method's cell does.
    chosen = list(enumerate(cells))
    if options.compare:
        chosen = []
    elif options.cell is not None:
        chosen = [chosen[options.cell]]
    helpers = [pair for pair in chosen if pair[0] < len(study.helpers)]
    methods = [pair for pair in chosen if pair[0] >= len(study.helpers)]
    failed = _run_together(helpers, len(cells), options.at_once, share=False)
    failed += _run_together(methods, len(cells), options.at_once, share=True)

    # Compare them.
    page = compare(study, cells, workdir) if options.cell is None else None
    if page:
        results = read_comparison(workdir / "study.json")
        print(f"\n{tables.text(results)}\npage: {page}")
    if failed:
        sys.exit(f"cranio_jax: {failed} of {len(chosen)} cells failed")


def _check(
    parser: argparse.ArgumentParser,
    options: argparse.Namespace,
    study: ml_collections.ConfigDict,
    cells: list[Cell],
) -> None:
    """Ends the program if flags do not fit the study."""
    needs_weights = any("{weights}" in flag for cell in cells for flag in cell.flags)
    if needs_weights and not options.weights and not options.compare:
        parser.error(
            f"{study.name} scores with your networks: name their folder with --weights. "
            "The study's configuration says what it must hold."
        )
    if options.cell is not None and not 0 <= options.cell < len(cells):
        parser.error(f"--cell={options.cell}: the study has the cells 0 to {len(cells) - 1}")
    if options.at_once < 1:
        parser.error(f"--at_once={options.at_once}: it runs nothing. Use 1 or more.")
    # Names and seeds of the configuration, before anything is trained.
    names = {method["name"] for method in study.methods}
    for name in (study.headline, *study.baselines, *study.get("other_xrays", ())):
        if name not in names:
            parser.error(f"{study.name} names {name}, which is none of its methods")
    for method in study.methods:
        if missing := set(method.get("seeds", ())) - set(study.seeds):
            parser.error(
                f"{method['name']} has the seed {min(missing)}, which the study has not. Add it "
                "to the study's seeds."
            )


if __name__ == "__main__":
    try:
        main()
    except InputError as error:
        sys.exit(f"cranio_jax: {error}")
