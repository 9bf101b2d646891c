"""What lies around a process: variables, home, streams, the container, files of the same name."""

import ast
import errno
import importlib
import os
import pwd
import subprocess
import sys
from pathlib import Path

import jax
import numpy as np
import pytest

import trunk_sisters
from data import table
from data.base import download as transfer
from data.base import locking, machine, writing
from data.base.errors import UserError
from data.images import cache, datasets, folders
from data.inference import shipped
from data.recipes import recipe
from data.recipes.baselines import download
from data.run import manifest, runfolder
from trunk_jax.machine import backend, memory, settings, xla
from trunk_jax.pictures.accuracy_cost import curve

ROOT = Path(__file__).parents[1]


def run(*words, cwd=None, **variables):
    """A process with these variables in place of all that might be set here."""
    plain = {k: v for k, v in os.environ.items() if not k.startswith(manifest.VARIABLES)}
    path = os.pathsep.join([str(ROOT), *filter(None, [os.environ.get("PYTHONPATH")])])
    return subprocess.run(
        [sys.executable, *words],
        capture_output=True,
        text=True,
        cwd=cwd,
        env=plain | {"PYTHONPATH": path} | variables,
    )


# --- settings of JAX

ODD = {
    "jax_enable_x64": True,
    "jax_default_prng_impl": "rbg",
    "jax_threefry_partitionable": False,
    "jax_random_seed_offset": 3,
    "jax_disable_most_optimizations": True,
}


@pytest.mark.slow
def test_what_decides_a_result_is_set_whatever_the_variables_say():
    code = (
        "import json\nfrom trunk_jax.machine import backend, settings\nbackend.start()\n"
        "import jax\nprint(json.dumps(settings.recorded()), jax.numpy.ones(1, float).dtype,\n"
        "*jax.random.key_data(jax.random.key(0)))"
    )
    odd = run("-c", code, **{name.upper(): str(value) for name, value in ODD.items()})
    plain = run("-c", code)
    assert odd.returncode == plain.returncode == 0, odd.stderr
    assert odd.stdout == plain.stdout
    assert plain.stdout.split()[-3:] == ["float32", "0", "0"]
    notes = odd.stderr.splitlines()
    assert [note.split("=")[0] for note in notes] == [f"note: {n.upper()}" for n in ODD]


@pytest.mark.parametrize(
    ("name", "value"), [(name, wrong[0]) for name, wrong in settings.REFUSED.items()]
)
def test_a_setting_under_which_nothing_runs_is_one_line(monkeypatch, name, value):
    monkeypatch.setattr(settings, "_now", lambda asked, *_: value if asked == name else None)
    with pytest.raises(UserError, match=f"^{name.upper()}={value}: .* unset it$"):
        backend.start()


@pytest.mark.slow
def test_a_platform_that_is_not_here_and_a_value_that_is_none():
    code = "from data.base.errors import run_command\nrun_command(lambda: __import__('{}'){})"
    start = code.format("trunk_jax.machine.backend", ".machine.backend.start()")
    gone = run("-c", start, JAX_PLATFORMS="cuda")
    assert (gone.returncode, gone.stderr.count("\n")) == (2, 1), gone.stderr
    assert gone.stderr.startswith("error: JAX finds no device")
    assert "unset JAX_PLATFORMS=cuda" in gone.stderr
    odd = run("-c", start, JAX_NUMPY_RANK_PROMOTION="nonsense")
    assert (odd.returncode, odd.stderr.count("\n")) == (2, 1), odd.stderr
    assert "nonsense" in odd.stderr


def commands_of_jax():
    for package in ("trunk_jax", "parity"):
        for file in [*(ROOT / package).glob("*.py"), ROOT / "parity" / "study" / "command.py"]:
            text = file.read_text()
            if "run_command(" in text or file.name == "command.py":
                yield file, text


def test_every_command_that_computes_starts_jax_through_us():
    free = {"__main__.py", "report.py", "interrupt.py"}  # a list; pictures; it starts processes
    found = {file.name for file, text in commands_of_jax() if "backend.start(" in text}
    every = {file.name for file, _ in commands_of_jax()}
    assert every - found == free
    for package in ("trunk_torch_ref", "parity"):
        for file in (ROOT / package).glob("*.py"):
            text = file.read_text()
            if "run_command(" in text and file.name not in free | {"compare.py"}:  # sets its own
                assert "settings.apply()" in text, file


@pytest.mark.parametrize("flags", ["--xla_nonsense=1", "garbage"])
def test_flags_that_xla_does_not_know_are_one_line(flags):
    with pytest.raises(UserError, match=f"XLA_FLAGS={flags}: XLA refuses it .*; unset XLA_FLAGS"):
        xla.need_known_flags(flags)


def test_xla_is_not_asked_about_our_own_flags(monkeypatch):
    monkeypatch.setattr(xla, "_asked", lambda text: pytest.fail("it is asked"))
    own = xla.flags(deterministic=True) + " " + xla.flags(autotune=0)
    xla.need_known_flags(f"{own} --xla_force_host_platform_device_count=8")
    xla.need_known_flags("")


def test_python_programs_are_told_what_cannot_run(monkeypatch):
    import trunk_jax

    refused = {"jax_numpy_rank_promotion": (settings.of_jax("jax_numpy_rank_promotion"),)}
    monkeypatch.setattr(settings, "REFUSED", refused)
    with pytest.raises(UserError, match=r"JAX_NUMPY_RANK_PROMOTION=.*unset it"):
        trunk_jax.load("emnist")


def test_settings_of_a_python_program_stay_its_own(capsys):
    import trunk_jax

    with jax.enable_x64(True):
        trunk_jax.load("emnist")
        assert settings.of_jax("jax_enable_x64")
    assert "ignored" not in capsys.readouterr().err


def test_a_count_of_processors_that_cannot_be_is_named(monkeypatch):
    monkeypatch.setenv("JAX_NUM_CPU_DEVICES", "0")
    monkeypatch.setattr(settings, "of_jax", lambda name: 0)
    monkeypatch.setattr(jax, "devices", lambda: (_ for _ in ()).throw(RuntimeError("none")))
    with pytest.raises(UserError, match=r"; unset JAX_NUM_CPU_DEVICES=0$"):
        backend.start()


def test_what_names_no_run_is_one_line():
    import trunk_jax

    with pytest.raises(UserError, match=r"a run is named by a folder, .*and this is a int"):
        trunk_jax.load(5)


def test_a_run_may_be_named_by_what_stands_for_a_path(tmp_path):
    class Place:
        def __fspath__(self):
            return str(tmp_path)

    assert shipped.run_of(Place()) == tmp_path


def test_flags_of_xla_that_change_no_number_are_left_out():
    text = "--xla_dump_to=/tmp/x  --xla_cpu_enable_fast_math=true --xla_backend_extra=1"
    assert settings.xla_flags(text + " --xla_force_host_platform_device_count=8") == [
        "--xla_backend_extra=1",
        "--xla_cpu_enable_fast_math=true",
    ]


def test_a_run_is_not_resumed_under_other_settings(tmp_path):
    config = {"format": runfolder.FORMAT, "settings": settings.recorded()}
    runfolder.create(tmp_path / "new", config, False)
    assert runfolder.create(tmp_path / "new", config, True)
    other = config | {"settings": config["settings"] | {"jax_default_matmul_precision": "highest"}}
    with pytest.raises(UserError, match=r"settings\.jax_default_matmul_precision: None, now 'high"):
        runfolder.create(tmp_path / "new", other, True)
    # of a run from before they were kept nothing is known
    runfolder.create(tmp_path / "old", {"format": runfolder.FORMAT}, False)
    assert runfolder.create(tmp_path / "old", config, True)


def test_what_changes_last_bits_is_told_when_a_run_goes_on(monkeypatch):
    monkeypatch.setenv("OMP_NUM_THREADS", "3")
    monkeypatch.setenv("EDITOR", "vi")
    monkeypatch.setenv("KMP_INIT_AT_FORK", "FALSE")  # which scikit-learn sets, but not always
    about = {
        "python": "3.11.7",
        "device": {"kind": "cpu"},
        "machine": {"system": "a", "processor": "p", "cores": 2},
        "packages": {"jax": "0.10.2"},
        "environment": manifest.environment(),
    }
    assert about["environment"]["OMP_NUM_THREADS"] == "3"
    assert not {"EDITOR", "KMP_INIT_AT_FORK"} & about["environment"].keys()
    assert manifest.changes(about, about) == []
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "1")
    now = about | {
        "machine": {"system": "b", "processor": "p", "cores": 4},
        "environment": manifest.environment(),
    }
    assert manifest.changes(about, now) == ["cores: 2, now 4", "OMP_NUM_THREADS: 3, now 1"]


# --- the commit in a manifest


def git(folder, *words):
    who = ["-c", "user.name=x", "-c", "user.email=x@y"]
    subprocess.run(["git", "-C", folder, *who, *words], check=True, capture_output=True)


def test_only_a_repository_that_tracks_the_file_counts(tmp_path, monkeypatch):
    installed = tmp_path / "site-packages" / "data" / "manifest.py"
    installed.parent.mkdir(parents=True)
    installed.write_text("")
    assert manifest.git(installed) is None
    git(tmp_path, "init")
    (tmp_path / "users.txt").write_text("")
    git(tmp_path, "add", "users.txt")
    git(tmp_path, "commit", "-m", "the user's own")
    assert manifest.git(installed) is None
    monkeypatch.setenv("GIT_DIR", str(tmp_path / "elsewhere"))  # as in a hook
    git_dir = os.environ.pop("GIT_DIR")
    git(tmp_path, "add", "site-packages")
    git(tmp_path, "commit", "-m", "with ours")
    monkeypatch.setenv("GIT_DIR", git_dir)
    found = manifest.git(installed)
    assert len(found["commit"]) == 40
    assert not found["modified"]


# --- no home


@pytest.fixture
def homeless(monkeypatch):
    for name in ("HOME", "TRUNK_CACHE_DIR", "XDG_CACHE_HOME", "TFDS_DATA_DIR"):
        monkeypatch.delenv(name, raising=False)

    def unknown(_):
        raise KeyError("no such user")

    monkeypatch.setattr(pwd, "getpwuid", unknown)
    cache._warn.cache_clear()


@pytest.mark.usefixtures("homeless")
def test_without_a_home_programs_are_compiled_anew(monkeypatch):
    from trunk_jax.machine import compile_cache

    monkeypatch.delenv("JAX_COMPILATION_CACHE_DIR", raising=False)
    monkeypatch.setattr(jax.config, "update", lambda *_: pytest.fail("there is no folder"))
    compile_cache.use("gpu")


@pytest.mark.usefixtures("homeless")
@pytest.mark.parametrize("home", ["~", "~nobody-of-that-name"])
def test_a_home_that_there_is_not_is_one_line(home):
    import trunk_jax
    import trunk_torch_ref

    for action in (
        lambda: datasets.own_place(f"hf:{home}/x"),
        lambda: datasets.own_place(f"{home}/x"),
        lambda: trunk_jax.load(f"{home}/x"),
        lambda: trunk_torch_ref.load(f"{home}/x"),
        lambda: table.verdict(f"run={home}/x"),
        lambda: table.verdict(f"{home}/x=file"),
        lambda: recipe.load(f"{home}/x.toml", "digits", None),
    ):
        with pytest.raises(UserError, match=f"^{home}/x.*: no such home folder"):
            action()


def test_a_home_folder_is_expanded_where_a_shell_leaves_it(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    with pytest.raises(UserError, match=f"{tmp_path}/curve.json"):
        curve("LABEL=~/curve.json")
    monkeypatch.setattr(table.results, "read_summary", lambda folder: {})
    with pytest.raises(UserError, match=f"{tmp_path}/x.json"):
        table.verdict("run=~/x.json")


@pytest.mark.usefixtures("homeless")
def test_without_a_home_there_is_no_cache_and_one_line(capsys, monkeypatch):
    for _ in range(2):
        assert len(datasets.load("digits").test.labels) == 359
    assert cache.optional_root() is None
    said = capsys.readouterr().err
    assert said.count("\n") == 1
    assert "TRUNK_CACHE_DIR" in said
    with pytest.raises(UserError, match="no such home folder; set TRUNK_CACHE_DIR"):
        cache.cache_root()
    with pytest.raises(UserError, match="no such home folder; pass --data-dir DIR"):
        folders.data_root()
    monkeypatch.setenv("TRUNK_CACHE_DIR", "~nobody-of-that-name/x")
    assert cache.optional_root() is None


@pytest.mark.usefixtures("homeless")
def test_without_a_home_programs_are_not_kept(tmp_path):
    from trunk_jax.inference import aot

    before = jax.config.jax_compilation_cache_dir
    aot.keep_programs()
    assert jax.config.jax_compilation_cache_dir == before


# --- files of the same name


@pytest.mark.parametrize("name", ["data.py", "data/__init__.py", "parity.py", "parity/__init__.py"])
def test_a_file_that_hides_a_package_is_one_line(tmp_path, name):
    file = tmp_path / name
    file.parent.mkdir(exist_ok=True)
    file.write_text("raise RuntimeError('the user\\'s file was run')")
    done = run("-m", "trunk_torch_ref.train", "--help", cwd=tmp_path)
    package = name.split(".")[0].split("/")[0]
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr == (
        f"error: {file} hides the package {package} of {ROOT}; start in another folder, or with "
        "python -P, or rename it\n"
    )
    inside = run("-c", "import trunk_jax", cwd=tmp_path)
    assert "ImportError" in inside.stderr
    assert "was run" not in inside.stderr


def test_a_file_called_as_the_check_neither_breaks_nor_silences_it(tmp_path):
    (tmp_path / "trunk_sisters.py").write_text("raise RuntimeError('the user\\'s file was run')")
    loads = "import data, parity, trunk_jax, trunk_torch_ref; print('all')"
    done = run("-c", loads, cwd=tmp_path)
    assert done.stdout == "all\n", done.stderr
    (tmp_path / "trunk_sisters.py").write_text("def check(): pass")
    (tmp_path / "parity.py").write_text("raise RuntimeError('the user\\'s file was run')")
    done = run("-m", "trunk_torch_ref.train", "--help", cwd=tmp_path)
    assert done.returncode == 2
    assert "hides the package parity" in done.stderr


def test_a_folder_of_the_same_name_hides_nothing(tmp_path):
    (tmp_path / "data").mkdir()
    (tmp_path / "parity").mkdir()
    loads = (
        "import sys, trunk_jax, data, parity\nprint('jax' in sys.modules, 'numpy' in sys.modules)"
    )
    done = run("-c", loads, cwd=tmp_path)
    assert done.stdout == "False False\n", done.stderr
    for name in trunk_sisters.NAMES:
        assert 'trunk_sisters.py"))["check"]()' in (ROOT / name / "__init__.py").read_text()


# --- systems that lack a function


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="no /proc on this system")
def test_peak_memory_does_not_count_what_the_parent_had():
    child = "from data.base import machine; x = b'x' * 50_000_000; del x; "
    child += "print(machine.peak_memory())"
    parent = f"""
import subprocess, sys
held = b"x" * 400_000_000
subprocess.run([sys.executable, "-c", {child!r}], check=True)
"""
    done = subprocess.run(
        [sys.executable, "-c", parent], check=True, capture_output=True, text=True
    )
    assert 50e6 < int(done.stdout) < 200e6  # 400 MB more by getrusage


def test_without_functions_of_linux(tmp_path, monkeypatch):
    monkeypatch.delattr(os, "sched_getaffinity", raising=False)
    monkeypatch.delattr(os, "posix_fallocate", raising=False)
    assert machine.cores() == os.cpu_count()
    sizes = []
    real = Path.unlink
    monkeypatch.setattr(
        Path, "unlink", lambda p, **k: (sizes.append(p.stat().st_size), real(p, **k))
    )
    writing.reserve(tmp_path, 3 * 2**20 + 5)
    assert sizes == [3 * 2**20 + 5]
    for module in ("resource", "fcntl"):
        monkeypatch.setitem(sys.modules, module, None)
    assert machine.peak_memory(tmp_path) == 0  # nor its /proc
    try:
        importlib.reload(locking)
        with locking.hold(tmp_path):  # by a file that names the process
            assert (tmp_path / ".lock.process").exists()
        assert not (tmp_path / ".lock.process").exists()
    finally:
        monkeypatch.undo()
        importlib.reload(locking)


def test_a_lock_is_held_by_whatever_the_system_has(tmp_path, monkeypatch):
    """Windows' own, which is asked for one byte of the file."""

    class Windows:
        LK_NBLCK = 2
        locked = False

        def locking(self, number, mode, size):
            assert (mode, size) == (2, 1)
            if self.locked:
                raise PermissionError(errno.EACCES, "held")
            self.locked = True

    monkeypatch.setattr(locking, "fcntl", None)
    monkeypatch.setattr(locking, "msvcrt", Windows())
    with locking.hold(tmp_path), pytest.raises(UserError, match="in use"), locking.hold(tmp_path):
        pass


def test_no_module_needs_a_function_of_linux_to_be_imported():
    """Modules that only some systems have are imported where a miss is expected."""
    for package in trunk_sisters.NAMES:
        for file in (ROOT / package).rglob("*.py"):
            top = ast.parse(file.read_text()).body
            names = {a.name for node in top if isinstance(node, ast.Import) for a in node.names}
            assert not names & {"fcntl", "resource", "msvcrt", "pwd", "termios"}, file
            text = file.read_text()
            if file.name != "machine.py":
                assert "sched_getaffinity" not in text, file
            assert "signal.SIGKILL" not in text, file


# --- the memory of a container


def tree(root, files):
    for name, text in files.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text(str(text))
    return machine.available_memory(root)


HOST = {"proc/meminfo": "MemTotal: 64000 kB\nMemAvailable:   32000 kB\n"}


def test_memory_of_a_machine_without_containers(tmp_path):
    assert tree(tmp_path / "none", {}) is None
    assert tree(tmp_path / "host", HOST) == 32_000 * 1024


def test_memory_of_a_container_with_cgroup_v2(tmp_path):
    group = "sys/fs/cgroup/job/step"
    files = HOST | {
        "proc/self/cgroup": "0::/job/step\n",
        f"{group}/memory.max": "max\n",
        f"{group}/memory.current": 5_000,
        "sys/fs/cgroup/job/memory.max": 9_000_000,  # the group above limits it
        "sys/fs/cgroup/job/memory.current": 4_000_000,
        "sys/fs/cgroup/job/memory.stat": "anon 1\ninactive_file 1500000\n",
    }
    assert tree(tmp_path, files) == 9_000_000 - (4_000_000 - 1_500_000)
    assert tree(tmp_path, {f"{group}/memory.high": 6_000}) == 1_000
    assert tree(tmp_path, {f"{group}/memory.current": 7_000}) == 0


def test_memory_of_a_container_with_cgroup_v1(tmp_path):
    memory_of = "sys/fs/cgroup/memory"
    files = HOST | {
        "proc/self/cgroup": "5:cpu:/x\n4:memory:/docker/0123\n0::/\n",  # the host's path
        f"{memory_of}/memory.limit_in_bytes": 8_000_000,
        f"{memory_of}/memory.usage_in_bytes": 3_000_000,
        f"{memory_of}/memory.stat": "inactive_file 1\ntotal_inactive_file 1000000\n",
    }
    assert tree(tmp_path, files) == 6_000_000
    assert tree(tmp_path, {f"{memory_of}/memory.limit_in_bytes": 2**63 - 4096}) == 32_000 * 1024


def test_the_containers_memory_decides_what_is_compiled(monkeypatch):
    monkeypatch.setattr(machine, "available_memory", lambda: 10)
    assert memory.available() == 10
    memory.forget()
    with pytest.raises(UserError, match="smaller --batch-size"):
        memory.compile_within(jax.jit(lambda x: x @ x), np.ones((64, 64)), statics=0)


# --- streams and connections

SAYS = "from data.base.errors import run_command\nrun_command(lambda: print('done'))"


@pytest.mark.parametrize("closed", ["<&- >&-", ">&-", "2>&-", "<&- >&- 2>&-"])
def test_a_closed_stream_is_no_fault(tmp_path, closed):
    program = tmp_path / "program.py"
    program.write_text(SAYS)
    line = f'"{sys.executable}" "{program}" {closed}'
    done = subprocess.run(
        ["sh", "-c", line],
        capture_output=True,
        text=True,
        cwd=ROOT,
        env=os.environ | {"PYTHONPATH": str(ROOT)},
    )
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout == ("" if ">&- " in f"{closed} ".replace("2>&-", "") else "done\n")


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs /dev/full")
def test_output_that_cannot_be_written_is_one_line():
    line = f'"{sys.executable}" -c "{SAYS.replace(chr(10), ";")}" > /dev/full'
    done = subprocess.run(["sh", "-c", line], capture_output=True, text=True, cwd=ROOT)
    assert (done.returncode, done.stderr) == (2, "error: No space left on device\n")


def test_a_bundle_of_certificates_that_is_missing(monkeypatch, tmp_path):
    monkeypatch.setenv("REQUESTS_CA_BUNDLE", str(tmp_path / "none.pem"))
    problem = "Could not find a suitable TLS CA certificate bundle.*none.pem"
    with pytest.raises(transfer.Unavailable, match=problem):
        transfer.reach("https://localhost:9/x")
    with pytest.raises(UserError, match=problem):
        download.fetch("mobilenet_v2", tmp_path)


@pytest.mark.slow
def test_a_job_whose_processes_do_not_come_is_one_line(tmp_path):
    code = (
        "from data.base.errors import run_command\nfrom trunk_jax.machine import backend, hosts\n"
        "hosts.WAIT = 1\nrun_command(lambda: backend.start(distributed=True))"
    )
    job = {"SLURM_JOB_ID": "4242", "SLURM_STEP_NODELIST": "localhost", "SLURM_NTASKS": "2"}
    done = run("-c", code, **job, SLURM_PROCID="1", SLURM_LOCALID="1")
    assert (done.returncode, done.stderr.count("\n")) == (2, 1), done.stderr
    assert done.stderr.startswith("error: --distributed: not all processes of the job found")
