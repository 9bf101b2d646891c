"""`python -m parity.pretrained NAME`: a model's public weights, checked in both frameworks.

Fetches the published file (or takes one with --file), checks its SHA-256 where the publisher
states it in the name, loads it without running code from it, checks that both frameworks
compute the same with it, and writes safetensors that either of them loads.
"""

import sys
from pathlib import Path

import numpy as np
from safetensors.numpy import save as save_safetensors

from data.base.errors import UserError, run_command
from data.base.parser import Parser, target
from data.base.writing import save_bytes, save_json, write_bytes
from data.images.cache import cache_root
from data.recipes.baselines import pretrained
from data.recipes.baselines.download import SOURCES, check_digest, fetch


def main(arguments: list[str] | None = None) -> int:
    """Fetch, check, convert as the flags say: 0 if all is well, 1 if the frameworks differ."""
    parser = Parser(
        prog="python -m parity.pretrained",
        description="Fetch a model's public weights, check them in both frameworks, and write "
        "them as safetensors.",
    )
    add = parser.add_argument
    add("name", metavar="NAME", help=f"one of {', '.join(SOURCES)}")
    add(
        "--file",
        metavar="FILE",
        help="the published file, downloaded elsewhere (default: none, download it)",
    )
    add(
        "--sha256",
        metavar="DIGEST",
        help="that the file must have; needed where its publisher "
        "states none (default: the one in its published name)",
    )
    add(
        "--out",
        type=target,
        metavar="FILE",
        help="the safetensors to write (default: "
        "NAME.safetensors in the cache, where train looks for it)",
    )
    add("--seed", type=int, default=0, help="of the images (default: %(default)s)")
    add("--json", type=target, metavar="FILE", help="also write the result to FILE (default: none)")
    options = parser.parse_args(arguments)
    name = options.name
    if name not in SOURCES:
        raise UserError(f"no public weights for {name!r}; there are: {', '.join(SOURCES)}")
    if options.seed < 0:
        raise UserError("--seed must be 0 or more")
    file = Path(options.file) if options.file else None
    if file is not None and not file.is_file():
        raise UserError(f"{file} is missing")
    file = file or fetch(name, cache_root() / "downloads")
    digest = check_digest(name, file)
    if options.sha256 is None and not SOURCES[name].sha256:
        raise UserError(
            f"no SHA-256 is published for {file.name}; that of {file} is {digest}: compare it with "
            f"a source that you trust, and pass --sha256 {digest}"
        )
    if options.sha256 is not None and options.sha256.lower() != digest:
        raise UserError(f"the SHA-256 of {file} is {digest}, not that of --sha256; remove the file")
    # after the download: both frameworks take seconds to load
    from trunk_jax.machine import backend
    from trunk_torch_ref.machine import settings as torch_settings

    backend.start()
    torch_settings.apply()
    from parity.checks import report
    from parity.checks.pretrained import check, read

    weights = read(name, file)
    checks = check(name, weights, options.seed)
    report.print_table(checks)
    good = all(each.passed for each in checks)
    out = options.out or pretrained.file_of(name)
    if good:
        contiguous = {key: np.asarray(value, order="C") for key, value in weights.items()}
        write = save_bytes if options.out else write_bytes  # which makes the cache's folders
        write(out, save_safetensors(contiguous))
        print(f"{out}: {len(weights)} tensors from {file.name}, SHA-256 {digest}")
    if options.json:
        result = report.as_json(checks, options.seed, [])
        about = {"name": name, "url": SOURCES[name].url, "sha256": digest, "file": str(out)}
        save_json(options.json, result | {"weights": about})
    return 0 if good else 1


if __name__ == "__main__":
    run_command(lambda: main(sys.argv[1:]))
