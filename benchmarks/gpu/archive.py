"""One file under a size that brings back results, runs and what is needed to go on with them."""

import io
import zipfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from data.base import reading, writing
from data.base.errors import UserError

LIMIT = 15 * 2**20  # bytes; at most 16 MiB of a file come back
CONTENTS = "contents.txt"


@dataclass(frozen=True)
class Unit:
    """Files that are of use only together."""

    name: str
    files: tuple[Path, ...]


def units(out: Path) -> Iterator[Unit]:
    """What is worth bringing back from the command's folder, the dearest first."""
    results = sorted((out / "results").glob("*.json"))
    yield Unit("results", tuple(results))
    for file in sorted((out / "jobs").glob("*/*.json")):
        yield Unit(str(file.relative_to(out)), (file,))
    runs = sorted(path.parent for path in (out / "runs").glob("*/config.json"))
    for run in runs:
        small = [file for file in run.glob("*") if file.is_file()] + list(run.glob("asl/*"))
        yield Unit(f"runs/{run.name}", tuple(sorted(small)))
    # what an unfinished run needs to go on, the one that was worked on last first
    unfinished = [run for run in runs if not (run / "summary.json").exists()]
    for run in sorted(unfinished, key=lambda run: -run.stat().st_mtime):
        for seal in sorted(run.glob("checkpoints/*/*/seal.json"), key=lambda s: s.stat().st_mtime):
            epoch = reading.json_of_form(seal, {"epoch": int}, "a checkpoint's seal")["epoch"]
            inside = [file for file in (seal.parent / str(epoch)).rglob("*") if file.is_file()]
            yield Unit(str(seal.parent.relative_to(out)), (*sorted(inside), seal))
    for run in runs:
        yield Unit(f"runs/{run.name}/weights", tuple(sorted(run.glob("weights/*"))))
    for file in sorted((out / "jobs").glob("*/log.txt")):
        yield Unit(str(file.relative_to(out)), (file,))


def write(out: Path, target: Path, limit: int = LIMIT) -> list[str]:
    """Write the archive, whole or not at all; the names of the units that had no room."""
    left_out, size = [], 4096
    content = io.BytesIO()
    with zipfile.ZipFile(content, "w", zipfile.ZIP_DEFLATED) as archive:
        for unit in units(out):
            needed = _packed(unit, out)
            if size + needed > limit:
                left_out.append(unit.name)
                continue
            size += needed
            for file in unit.files:
                archive.write(file, file.relative_to(out))
        text = "".join(f"left out: {name}\n" for name in left_out[:40])
        # without the time of now, so that the same files make the same archive
        archive.writestr(zipfile.ZipInfo(CONTENTS), text or "nothing was left out\n")
    writing.save_bytes(target, content.getvalue())
    return left_out


def _packed(unit: Unit, out: Path) -> int:
    """Bytes that it adds to the archive."""
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED) as archive:
        for file in unit.files:
            archive.write(file, file.relative_to(out))
    return len(buffer.getbuffer())


def unpack(file: Path, out: Path) -> None:
    """Put an archive's files into the command's folder. UserError if it is no such archive."""
    try:
        with zipfile.ZipFile(file) as archive:
            names = archive.namelist()
            # only what `write` makes: results, jobs and runs, none of it outside of the folder
            inside = all(
                Path(name).parts[0] in ("results", "jobs", "runs", CONTENTS)
                and ".." not in Path(name).parts
                for name in names
            )
            if CONTENTS not in names or not inside:
                raise UserError(f"{file} is not an archive of this command")
            archive.extractall(out, [name for name in names if name != CONTENTS])
    except (OSError, zipfile.BadZipFile) as error:
        raise UserError(f"{file} cannot be read ({error})") from None
