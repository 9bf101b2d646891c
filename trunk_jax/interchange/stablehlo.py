"""The program of one image as StableHLO, in the versioned form of `jax.export`, to run without us.

JAX promises to read it for 6 months by its rules of compatibility, on the platforms it was made
for.
"""

import json
import sys
from pathlib import Path
from typing import Any

import jax
import jax.export
import jax.numpy as jnp

from data.base import writing
from data.base.errors import UserError
from data.base.progress import working
from trunk_jax.inference.single import program_of
from trunk_jax.interchange.trained import of_run

PLATFORMS = ("cpu", "cuda", "tpu")
PROGRAM, ABOUT, SCRIPT = "program.stablehlo", "about.json", "run.py"

# Runs in the folder, with JAX and NumPy alone.
_RUN = '''"""Classify one image: python run.py IMAGE.npy, uint8 [height, width, channels]."""

import json
import pathlib
import sys

import jax
import numpy as np

here = pathlib.Path(__file__).parent
program = jax.export.deserialize(bytearray((here / "program.stablehlo").read_bytes()))
classes = json.loads((here / "about.json").read_text())["classes"]
label, probability, path = program.call(np.load(sys.argv[1]))
print(f"{classes[int(label)]} {float(probability):.4f} path {path.tolist()}")
'''


def export(run: Path, out: Path) -> tuple[dict[str, Any], list[str]]:
    """Write the folder `out`: program, what it is, and a script that runs it; (result, lines).

    The program takes one image, uint8 [height, width, channels], and gives (label, probability,
    path) as `inference.single` does. UserError if `out` exists, or the run is not finished.
    """
    writing.need_new(out)
    with working("loading the tree"):
        trained = of_run(run)
    if trained.recipe.baseline is not None:
        raise UserError(f"{run} is a baseline, and the program is of trees")
    program = jax.jit(program_of(trained.model))
    image = jax.ShapeDtypeStruct(trained.image_shape, jnp.uint8)
    with working(f"making the program for {', '.join(PLATFORMS)}"):
        exported = jax.export.export(program, platforms=PLATFORMS)(image)
        content = bytes(exported.serialize())
    about: dict[str, Any] = {
        **trained.about,
        "classes": json.loads(trained.about["classes"]),
        "image": {"type": "uint8", "shape": list(trained.image_shape)},
        "calling_convention_version": exported.calling_convention_version,
        "platforms": list(PLATFORMS),
        "jax": jax.__version__,
        "python": sys.version.split()[0],
    }
    with writing.new_folder(out) as folder:
        writing.write_bytes(folder / PROGRAM, content)
        writing.write_json(folder / ABOUT, about)
        writing.write_bytes(folder / SCRIPT, _RUN.encode())
    result = {
        "out": str(out),
        "bytes": len(content),
        "calling_convention_version": exported.calling_convention_version,
    }
    return result, [
        f"wrote {out}: {PROGRAM} {len(content) / 1e6:.2f} MB, calling convention "
        f"{exported.calling_convention_version}, for {', '.join(PLATFORMS)}",
        f"run it with JAX alone: python {out / SCRIPT} IMAGE.npy",
    ]
