"""Trains every method of a study with every seed, scores all alike, and writes one comparison.

python launch/study.py --study=configs/study_phantom.py --workdir=DIR [--weights=DIR] [--at_once=N] [--cell=K] [--config.FIELD=VALUE ...]

A cell is one method with one seed, a run of cranio_jax.main in a folder of its own. What is finished is not done again, what
failed is told and does not stop the rest; started again, the study goes on. `--list` numbers the cells and `--cell=K` runs
one of them: an array of jobs, or several machines with one WORKDIR or with copies of it, share the work, and the comparison
is made of whatever is there (`--compare`). `--at_once=2` runs two cells at a time on one machine, each method's with half the
cores: a network too small to fill all of them is trained as fast by one. `--seeds=0,1,2` stands in place of the study's own seeds. Further
`--config.` flags go to every cell: your own data, say.
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
from collections.abc import Iterator
from concurrent import futures

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
    """A run.

    Attributes:
      name: of the method.
      seed: of the run.
      folder: its workdir.
      flags: its flags, with `{name}` for the file of another cell's embedder and `{weights}` for the folder of your weights.
      needs: the cells whose embedders it names.
    """

    name: str
    seed: int
    folder: pathlib.Path
    flags: tuple[str, ...]
    weights: pathlib.Path
    needs: tuple["Cell", ...] = ()

    @property
    def begun_otherwise(self) -> bool:
        told = self.folder / "flags.json"
        return told.exists() and json.loads(told.read_text()) != list(self.flags)

    @property
    def done(self) -> bool:
        return (self.folder / "results.json").exists() and not self.begun_otherwise

    def command(self) -> list[str]:
        files = {cell.name: str(cell.folder / EMBEDDER) for cell in self.needs} | {
            "weights": str(self.weights)
        }
        filled = [flag.format(**files) for flag in self.flags]
        return [
            sys.executable,
            "-m",
            "cranio_jax.main",
            *filled,
            f"--config.seed={self.seed}",
            f"--workdir={self.folder}",
        ]


def read_study(name: str):
    """The study's configuration. Raises InputError."""
    file, _, variant = name.partition(":")
    path = next((p for p in (pathlib.Path(file), ROOT / file) if p.exists()), None)
    if path is None:
        raise InputError(f"--study={file}: no such file in the current folder or the checkout")
    spec = importlib.util.spec_from_file_location("study", path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    try:
        return module.get_config(variant)
    except ValueError as error:
        raise InputError(str(error)) from None


def cells_of(study, workdir: pathlib.Path, weights: pathlib.Path, more: list[str]) -> list[Cell]:
    """All cells, helpers first, which are embedders and have one seed."""
    flags = lambda part: tuple(f"--config.{flag}" for flag in part)
    made = []
    for helper in study.helpers:
        own = (f"--config={helper['config']}", *flags(study.flags), *flags(helper["flags"]), *more)
        made.append(
            Cell(helper["name"], helper["seed"], workdir / "cells" / helper["name"], own, weights)
        )
    helpers = {cell.name: cell for cell in made}
    for seed in study.seeds:
        for method in study.methods:
            own = (
                f"--config={method['config']}",
                *flags(study.flags),
                *flags(study.method_flags),
                *flags(method["flags"]),
                *more,
            )
            needs = tuple(
                cell
                for name, cell in helpers.items()
                if any("{" + name + "}" in flag for flag in own)
            )
            folder = workdir / "cells" / f"{method['name'].replace(' ', '_')}_{seed}"
            made.append(Cell(method["name"], seed, folder, own, weights, needs))
    return made


def run(cell: Cell) -> str:
    """Runs a cell; returns why it failed, or nothing."""
    for other in cell.needs:
        if not (other.folder / EMBEDDER).exists():
            return f"needs the embedder of {other.name}, which is not there"
    cell.folder.mkdir(parents=True, exist_ok=True)
    if cell.begun_otherwise:
        return f"{cell.folder} was begun with other flags; remove it or choose another --workdir"
    write_json(cell.folder / "flags.json", list(cell.flags))
    # Cells compile much in common, small programs among it.
    kept = {
        "JAX_COMPILATION_CACHE_DIR": str(cell.folder.parent / "compiled"),
        "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0.2",
    }
    environment = kept | os.environ
    with open(cell.folder / "log.txt", "ab") as log:
        ended = subprocess.run(
            cell.command(),
            cwd=ROOT,
            stdout=log,
            stderr=subprocess.STDOUT,
            env=environment,
            check=False,
        )
    if ended.returncode:
        lines = (cell.folder / "log.txt").read_text(errors="replace").strip().splitlines()
        return f"{lines[-1] if lines else 'no word'} (exit {ended.returncode}; see {cell.folder / 'log.txt'})"
    return "" if cell.done else f"ended without results; see {cell.folder / 'log.txt'}"


def cost(cell: Cell, results: Results) -> dict[str, float]:
    """What a run took: parameters, images seen, seconds of training, TFLOP of both, seconds a face."""
    rate = [
        line["images_per_second"] for line in logged(cell.folder) if "images_per_second" in line
    ][-1:]
    images = (results.step or 0) * results.config["train"]["batch_size"]
    found = {"parameters": sum((results.parameters or {}).values()), "images": images}
    if rate:
        found["seconds"] = images / rate[0]
    counted = cell.folder / "operations.json"
    if not counted.exists():
        flags = [flag for flag in cell.command()[3:] if not flag.startswith("--workdir")]
        asked = subprocess.run(
            [sys.executable, str(ROOT / "launch" / "flops.py"), *flags],
            cwd=ROOT,
            capture_output=True,
            check=False,
        )
        if asked.returncode:
            return found
        write_json(counted, json.loads(asked.stdout))
    operations = json.loads(counted.read_text())
    found["training_tflop"] = operations["train"] * images
    if "generate" in operations:
        found["face_tflop"] = operations["generate"]
    return found | ({"face_seconds": results.seconds_per_face} if results.seconds_per_face else {})


def compare(study, cells: list[Cell], workdir: pathlib.Path) -> pathlib.Path | None:
    """Writes the comparison of what is finished: study.json, table.md, table.tex, study.html. None where nothing is."""
    methods = [method["name"] for method in study.methods]
    finished = {
        name: [cell for cell in cells if cell.name == name and cell.done] for name in methods
    }
    runs = {
        name: [read_results(cell.folder / "results.json") for cell in own]
        for name, own in finished.items()
    }
    if not any(runs.values()):
        return None
    results = comparison.compare(runs, study.headline, study.baselines, study.bootstrap)
    results.costs = {name: cost(finished[name][0], own[0]) for name, own in runs.items() if own}
    results.seeds = {name: [cell.seed for cell in own] for name, own in finished.items()}
    results.study = study.name
    schema.write(workdir / "study.json", results)
    tables.write(results, workdir)
    return pages.study(
        results,
        {name: [cell.folder for cell in own] for name, own in finished.items() if own},
        workdir,
    )


def told(number: int, cell: Cell, count: int) -> bool:
    """Runs a cell that is not finished, and says how it ended; returns whether it failed."""
    what = f"cell {number} of {count}: {cell.name}, seed {cell.seed}"
    if cell.done:
        print(f"{what}: finished before", flush=True)
        return False
    print(f"{what}: {cell.folder / 'log.txt'} tells how far it is", flush=True)
    began = time.monotonic()
    problem = run(cell)
    minutes, seconds = divmod(round(time.monotonic() - began), 60)
    print(
        f"{what}: " + (f"FAILED, {problem}" if problem else f"done in {minutes}:{seconds:02d}"),
        flush=True,
    )
    return bool(problem)


def _take_cores(numbers: Iterator[int], at_once: int) -> None:
    """A worker's share of the cores, which the runs that it starts inherit."""
    if at_once > 1 and hasattr(os, "sched_setaffinity"):
        cores = sorted(os.sched_getaffinity(0))
        os.sched_setaffinity(0, cores[next(numbers) % len(cores) :: at_once])


def main() -> None:
    # Without abbreviations: a --seed=3 taken for --seeds=3 would begin a study of days.
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0], allow_abbrev=False)
    parser.add_argument(
        "--study", required=True, help="a file of configs/, with :variant if it has some"
    )
    parser.add_argument("--workdir", required=True, help="a local folder")
    parser.add_argument(
        "--weights", default="", help="your folder of weights, where the study wants some"
    )
    parser.add_argument(
        "--seeds",
        type=lambda text: [int(seed) for seed in text.split(",")],
        help="in place of the study's own",
    )
    parser.add_argument("--cell", type=int, help="run this one alone, and compare nothing")
    parser.add_argument(
        "--at_once",
        type=int,
        default=1,
        help="run so many cells at a time, each on its share of the cores",
    )
    parser.add_argument("--compare", action="store_true", help="run nothing")
    parser.add_argument("--list", action="store_true", help="number the cells")
    options, more = parser.parse_known_args()
    if wrong := [flag for flag in more if not flag.startswith("--config.")]:
        parser.error(f"{wrong[0]} is no flag of a study; those of its cells begin with --config.")
    if buckets.is_remote(options.workdir):
        raise InputError(
            f"--workdir={options.workdir}: a study keeps its cells and logs on a disk. Name a local "
            "folder, and copy it to the bucket afterwards."
        )
    options.workdir = pathlib.Path(options.workdir).expanduser().resolve()
    study = read_study(options.study)
    study.seeds = options.seeds or study.seeds
    cells = cells_of(
        study, options.workdir, pathlib.Path(options.weights).expanduser().resolve(), more
    )
    if (
        not options.weights
        and not options.compare
        and any("{weights}" in flag for cell in cells for flag in cell.flags)
    ):
        parser.error(
            f"{study.name} scores with networks of yours: name their folder by --weights; its configuration tells what is in it"
        )
    if options.cell is not None and not 0 <= options.cell < len(cells):
        parser.error(f"--cell={options.cell}: the study has the cells 0 to {len(cells) - 1}")
    if options.at_once < 1:
        parser.error(f"--at_once={options.at_once} runs nothing")
    if options.list:
        for number, cell in enumerate(cells):
            print(f"{number:3d}  {cell.name}, seed {cell.seed}{', finished' if cell.done else ''}")
        return
    chosen = (
        list(enumerate(cells)) if options.cell is None else [(options.cell, cells[options.cell])]
    )
    chosen = [] if options.compare else chosen
    failed = 0
    # Helpers first: others name their embedders. They have all cores: the first makes the records, for which the others wait.
    for helpers in (True, False):
        part = [
            (number, cell) for number, cell in chosen if (number < len(study.helpers)) == helpers
        ]
        share = (
            {}
            if helpers
            else dict(initializer=_take_cores, initargs=(itertools.count(), options.at_once))
        )
        with futures.ThreadPoolExecutor(options.at_once, **share) as pool:
            failed += sum(pool.map(lambda one: told(*one, len(cells)), part))
    if options.cell is None:
        page = compare(study, cells, options.workdir)
        if page:
            print(f"\n{tables.text(read_comparison(options.workdir / 'study.json'))}\npage: {page}")
    if failed:
        sys.exit(f"cranio_jax: {failed} of {len(chosen)} cells failed")


if __name__ == "__main__":
    try:
        main()
    except InputError as error:
        sys.exit(f"cranio_jax: {error}")
