"""A finished tree compiled ahead of time: one program for one image, started from the cache.

What takes seconds at a start is done once for a run: building the networks, tracing them, and
compiling. The traced program with its weights (`jax.export`: StableHLO) is kept in the cache
folder, the machine code in JAX's own persistent compilation cache beside it. The key is a hash of
all that it depends on, and loading runs no pickle.
"""

import hashlib
import sys
from collections.abc import Callable
from pathlib import Path

import jax
import jax.export
import jax.numpy as jnp
import numpy as np

from data.base import writing
from data.base.errors import UserError
from data.images.cache import optional_root
from data.inference import stopping
from data.run import runfolder
from trunk_jax.machine.memory import compile_for_one_image

PACKAGES = ("trunk_jax", "data")  # whose sources a program depends on


def keep_programs() -> None:
    """Keep compiled programs in the cache folder, if there is one, and take them from there."""
    root = optional_root()
    if root is None:
        return
    jax.config.update("jax_compilation_cache_dir", str(root / "programs" / "xla"))
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0)
    jax.config.update("jax_persistent_cache_min_entry_size_bytes", -1)


def load(run: Path) -> Callable[[np.ndarray], tuple[jax.Array, jax.Array, jax.Array]]:
    """The run's tree as `inference.single.compile_single` gives it: a function of one image.

    The first call for a run on a machine makes it, later processes take it from the cache. A
    damaged entry is made again. UserError if the folder is no finished run.
    """
    keep_programs()
    root, key = optional_root(), _key(run)
    program = None if root is None else _kept(root / "programs" / key)
    if program is None:
        program = _make(run)
        if root is not None:
            _keep(root / "programs" / key, program)
    exported = jax.export.deserialize(bytearray(program))
    return compile_for_one_image(jax.jit(exported.call).lower(*exported.in_avals))


def _kept(folder: Path) -> bytes | None:
    """The program of a cache entry; None if there is none, or a damaged one."""
    try:
        program = (folder / "program").read_bytes()
        return program if (folder / "sha256").read_text() == _digest(program) else None
    except (OSError, ValueError):
        return None


def _keep(folder: Path, program: bytes) -> None:
    """Write a cache entry; one that cannot be written costs a warning and nothing else."""
    try:
        writing.write_bytes(folder / "program", program)
        writing.write_bytes(folder / "sha256", _digest(program).encode())
    except UserError as error:
        print(f"warning: the program is not kept for the next start ({error})", file=sys.stderr)


def _make(run: Path) -> bytes:
    """The exported program."""
    from trunk_jax.inference.load import load as load_run  # Flax takes a second to load
    from trunk_jax.inference.single import program_of

    model = load_run(run)
    program = jax.jit(program_of(model))
    exported = jax.export.export(program)(jax.ShapeDtypeStruct(model.image_shape, jnp.uint8))
    return bytes(exported.serialize())


def _digest(*parts: bytes) -> str:
    total = hashlib.sha256()
    for part in parts:
        total.update(hashlib.sha256(part).digest())
    return total.hexdigest()


def _key(run: Path) -> str:
    """A hash of the run, the sources, the versions and the device."""
    runfolder.read_config(run)  # a clear word if it is none
    files = [run / name for name in ("config.json", "tree.json", stopping.FILE)]
    files += sorted((run / "weights").glob("*"))
    house = Path(__file__).parents[2]
    for package in PACKAGES:
        files += sorted((house / package).rglob("*.py"))
    device = jax.devices()[0]
    about = f"{jax.__version__} {device.platform} {device.device_kind}".encode()
    return _digest(about, *(f.name.encode() + f.read_bytes() for f in files if f.exists()))[:24]
