"""The stepwise design: one framework trains, the other repeats its steps, each from the same state.

Nothing is carried from one step to the next, so no rounding grows and no control is needed: every
step is judged alone (`parity.study.bounds`). `parity.study.lead` trains and leaves segments of
steps; they are repeated here, by any number of processes, each result in a file of its own.
"""

import hashlib
import itertools
import sys
import time
from collections.abc import Iterator
from concurrent.futures import FIRST_COMPLETED, Future, wait
from contextlib import ExitStack, contextmanager
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import torch

from data.base import writing
from data.images.splits import Splits, split
from data.recipes.recipe import Recipe
from data.run import runfolder
from data.run.dataset import load_of_recipe
from data.tree.hierarchy import ancestors
from parity.study import bounds, jax_runner, lead, plants
from parity.study.bounds import Context, Verdict
from parity.study.lead import Segment
from parity.study.locate import located
from parity.study.options import Settings
from parity.study.repeat import Repeated, Repeater
from parity.study.trace import digits

FAR = 1e9  # times what is allowed: that far at most is told
NOTED = 60.0  # seconds between two lines of progress


@dataclass
class Place:
    """A seed's training in one process: what is kept from one segment to the next.

    `stage`, `fault`: those that `repeater` was made for; `planted`: undoes the fault.
    """

    recipe: Recipe
    parts: Splits
    folder: Path
    dtypes: tuple[str, ...]
    compiled: dict[Any, Any] = field(default_factory=dict)
    stage: int = -1
    fault: str | None = None
    planted: ExitStack = field(default_factory=ExitStack)
    repeater: Repeater | None = None
    context: Context | None = None


_PLACES: dict[Path, Place] = {}


def folder_of(out: Path, seed: int) -> Path:
    """Where a seed's training and its steps are."""
    return out / "stepwise" / f"seed{seed}"


def place_of(settings: Settings, data_dir: str | None, out: Path, seed: int) -> Place:
    """A seed's training in this process, made once."""
    folder = folder_of(out, seed)
    if folder not in _PLACES:
        dataset = load_of_recipe(settings.recipe, data_dir)
        recipe = replace(settings.recipe, seed=seed)
        parts = split(dataset, recipe.protocol, seed, recipe.limit)
        _PLACES[folder] = Place(recipe, parts, folder, settings.dtypes)
    return _PLACES[folder]


def train(settings: Settings, data_dir: str | None, out: Path, seed: int) -> None:
    """PyTorch's training of a seed."""
    _prepare()
    here = place_of(settings, data_dir, out, seed)
    classes = len(here.recipe.spec.class_names)
    lead.lead(here.recipe, here.parts, classes, settings.nodes, settings.every, here.folder, _say)


def repeat(
    settings: Settings, data_dir: str | None, out: Path, seed: int, segment: Segment
) -> None:
    """Repeat a segment, judge its steps and write what was found; its start is then forgotten."""
    _prepare()
    here = place_of(settings, data_dir, out, seed)
    start = lead.start_file(here.folder, segment)
    with jax_runner.recording():
        value = repeated(here, segment, lead.load(start), settings.fault, settings.fault_from)
    writing.write_json(lead.result_file(here.folder, segment), value)
    start.unlink()


def repeated(
    here: Place, segment: Segment, snapshot: dict[str, Any], fault: str | None, fault_from: int
) -> dict[str, Any]:
    """The steps of a segment, judged. `fault`: planted in JAX from that step of the training on."""
    records = dict(lead.stages(here.folder))
    before = sum(sum(records[number]["lengths"]) for number in range(segment.stage))
    steps: list[dict[str, Any]] = []
    tensors: dict[str, Any] = {}
    begun = _hash(snapshot)
    for place in range(segment.count):
        number = segment.first + place
        planted = fault if fault and before + number >= fault_from else None
        if _at(here, segment, records, planted) or place == 0:
            assert here.repeater is not None
            here.repeater.start(segment.epoch, snapshot)
        assert here.repeater is not None
        assert here.context is not None
        found = here.repeater.step(segment.start + place, evaluate=place == 0)
        row: dict[str, Any] = {"step": number, "epoch": segment.epoch}
        truth = found.taken["float64"]["torch"]
        row |= {"loss": digits(truth.step.loss), "rate": digits(truth.rate)}
        for dtype in here.dtypes:
            verdict = bounds.judge(found, dtype, here.context)
            row[dtype] = _told(verdict, dtype) | _where(here.repeater, found, verdict)
            _note(tensors.setdefault(dtype, {}), verdict, dtype)
        steps.append(row)
        snapshot = lead.snapshot(here.repeater.torch["float32"])
    return {
        "rule": bounds.EDITION,
        "segment": asdict(segment),
        "steps": steps,
        "tensors": tensors,
        "begun": begun,
        "ended": _hash(snapshot),
    }


def _at(here: Place, segment: Segment, records: dict[int, Any], fault: str | None) -> bool:
    """Have a repeater of this stage, with this fault; whether it had to be made."""
    if here.repeater is not None and (here.stage, here.fault) == (segment.stage, fault):
        return False
    here.planted.close()  # of the fault before; its compiled programs are forgotten
    here.planted.enter_context(plants.planted(fault))
    if fault != here.fault:
        here.compiled.clear()
    stage = lead.stage_of(records[segment.stage])
    above = []
    for node in ancestors(stage.node):
        known = [(n, lead.stage_of(records[n])) for n in range(segment.stage)]
        number, last = [(n, each) for n, each in known if each.node == node][-1]
        weights = lead.load(lead.weights_file(here.folder, number))
        above.append((last, {key: value.numpy() for key, value in weights.items()}))
    here.repeater = Repeater(here.recipe, here.parts, stage, above, here.dtypes, here.compiled)
    here.context = Context(here.repeater)
    here.stage, here.fault = segment.stage, fault
    return True


def _told(found: Verdict, dtype: str) -> dict[str, Any]:
    """A verdict in plain values. `shares`: of what is allowed, by framework and kind."""
    return {
        "shares": {
            name: {
                kind: digits(
                    max(
                        (bounds.share(e, found.allowed[name][kind][k]) for k, e in row.items()),
                        default=0.0,
                    )
                )
                for kind, row in table.items()
            }
            for name, table in found.errors.items()
        },
        "by": found.by,
        "doubt": found.doubt,
        "sides": found.sides,
        "undecided": found.undecided,
        "open": found.open,
        "excess": None
        if found.excess is None
        else asdict(found.excess)
        | {"error": digits(found.excess.error), "allowed": digits(found.excess.allowed)},
    }


def _where(repeater: Repeater, of: Repeated, found: Verdict) -> dict[str, Any]:
    """Which layer differs, where a step is beyond what is allowed."""
    if found.excess is None:
        return {}
    kind, tensor = found.excess.kind, found.excess.tensor
    named = f"{bounds.WORDS[kind]} {tensor}".strip(" *")
    if kind in bounds.EXACT:
        return {"where": {"cause": kind, "first": named}}
    dtype = "float32" if found.excess.framework else "float64"
    runner, wide = repeater.jax.get(dtype), repeater.torch["float64"]
    if runner is None:
        return {"where": {"cause": kind, "first": named}}
    state = of.before.state
    x = of.taken["float64"]["torch"].x
    network = runner.network(state)
    return {"where": located(network, wide.module(state), x, dtype, named, kind)}


def _note(tensors: dict[str, Any], found: Verdict, dtype: str) -> None:
    """Keep of each tensor the step in which it was nearest to what is allowed, in units."""
    unit = bounds.UNITS[dtype]
    for name, table in found.errors.items():
        for kind, row in table.items():
            kept = tensors.setdefault(name, {}).setdefault(kind, {})
            for key, error in row.items():
                most = found.allowed[name][kind][key]
                share = min(bounds.share(error, most), FAR)
                if key not in kept or share > kept[key][2]:
                    kept[key] = [digits(error / unit), digits(most / unit), share]


def _hash(snapshot: dict[str, Any]) -> str:
    """SHA-256 of all weights, statistics and moments."""
    made = hashlib.sha256()
    for key, value in sorted(snapshot["network"].items()):
        made.update(key.encode() + value.contiguous().numpy().tobytes())
    for key, row in sorted(snapshot["optimizer"]["state"].items()):
        for name, value in sorted(row.items()):
            if isinstance(value, torch.Tensor):
                made.update(f"{key} {name}".encode() + value.contiguous().numpy().tobytes())
    return made.hexdigest()


def tried(
    recipe: Recipe,
    parts: Splits,
    classes: int,
    dtypes: tuple[str, ...],
    folder: Path,
    compiled: dict[Any, Any],
    fault: str | None = None,
    fault_from: int = 1,
) -> dict[str, Any]:
    """Train a root and judge every step, in this process; see `summary`.

    `compiled`: kept by a caller that does so more than once.
    """
    lead.lead(recipe, parts, classes, "root", 1, folder, lambda line: None)
    here = Place(recipe, parts, folder, dtypes, compiled)
    with jax_runner.recording():
        for segment in waiting(folder):
            value = repeated(
                here, segment, lead.load(lead.start_file(folder, segment)), fault, fault_from
            )
            writing.write_json(lead.result_file(folder, segment), value)
    here.planted.close()
    return summarised(folder, 1, dtypes) | {"seed": recipe.seed}


# --- all of it


def compute(
    settings: Settings, data_dir: str | None, out: Path, jobs: int, inline: bool = False
) -> None:
    """Train and repeat what is not there yet, in `jobs` processes, or `inline` in this one."""
    from parity.study import tasks  # which knows the other designs, and they the options

    for seed in range(settings.seeds):
        folder = folder_of(out, seed)
        if inline:
            train(settings, data_dir, out, seed)
            for segment in waiting(folder):
                repeat(settings, data_dir, out, seed, segment)
            _leave(folder)
        elif not lead.finished(folder) or next(waiting(folder), None):
            with tasks.workers(jobs) as pool:
                _pooled(pool, settings, data_dir, out, seed)


def _pooled(pool: Any, settings: Settings, data_dir: str | None, out: Path, seed: int) -> None:
    """The training goes first; segments are repeated as they come."""
    folder, noted = folder_of(out, seed), 0.0
    leading: Future[None] | None = pool.submit(train, settings, data_dir, out, seed)
    running: dict[Future[None], Segment] = {}
    begun: set[Segment] = set()
    while True:
        for segment in waiting(folder):
            if segment not in begun:
                begun.add(segment)
                running[pool.submit(repeat, settings, data_dir, out, seed, segment)] = segment
        if not (leading or running):
            break
        waited = [*running, *([leading] if leading else [])]
        done, _ = wait(waited, timeout=2.0, return_when=FIRST_COMPLETED)
        for future in done:
            future.result()
            running.pop(future, None)
        if leading in done:
            leading = None
        if time.monotonic() - noted > NOTED or not (leading or running):
            noted = time.monotonic()
            judged, total = len(list((folder / "steps").glob("*.json"))), _total(settings, folder)
            more = ", more to come" if leading else ""
            _say(f"seed {seed}: {judged:,} of {total:,} pieces repeated{more}")


def _total(settings: Settings, folder: Path) -> int:
    return sum(
        len(lead.segments(number, record["lengths"], settings.every))
        for number, record in lead.stages(folder)
    )


def waiting(folder: Path) -> Iterator[Segment]:
    """Segments that have a start and no result, in the order of training."""
    records = dict(lead.stages(folder))
    for file in sorted((folder / "starts").glob("*.pt")):
        segment = _segment_of(file.stem, records)
        if lead.result_file(folder, segment).exists():
            file.unlink()  # an interruption came between the two
        else:
            yield segment


def _segment_of(name: str, records: dict[int, Any]) -> Segment:
    stage, epoch, start = map(int, name.split("-"))
    lengths, every = records[stage]["lengths"], records[stage]["every"]
    return next(
        one
        for one in lead.segments(stage, lengths, every)
        if (one.epoch, one.start) == (epoch, start)
    )


def _prepare() -> None:
    from parity.checks.processes import prepare_process

    prepare_process()


def _say(line: str) -> None:
    print(line, file=sys.stderr, flush=True)


@contextmanager
def fresh() -> Iterator[None]:
    """Inside, and after it, nothing is kept of trainings in this process before."""
    _leave_all()
    try:
        yield
    finally:
        _leave_all()


def _leave(folder: Path) -> None:
    here = _PLACES.pop(folder, None)
    if here is not None:
        here.planted.close()


def _leave_all() -> None:
    for folder in list(_PLACES):
        _leave(folder)


# --- what came of it


def summary(settings: Settings, out: Path, seed: int) -> dict[str, Any]:
    """A seed's training and the verdicts on its steps, in plain values."""
    return {"seed": seed} | summarised(folder_of(out, seed), settings.every, settings.dtypes)


def summarised(folder: Path, every: int, dtypes: tuple[str, ...]) -> dict[str, Any]:
    """The same of a training in any folder."""
    stages: list[dict[str, Any]] = []
    tensors: dict[str, Any] = {}
    rows: list[dict[str, Any]] = []
    links = [0, 0]
    before = 0
    for number, record in lead.stages(folder):
        work = lead.segments(number, record["lengths"], every)
        made = [runfolder.read_json(lead.result_file(folder, segment)) for segment in work]
        for one, after in itertools.pairwise(made):
            if one["segment"]["epoch"] == after["segment"]["epoch"] and every == 1:
                links[0] += 1
                links[1] += one["ended"] == after["begun"]
        mine = [
            row | {"stage": record["name"], "total": before + row["step"]}
            for one in made
            for row in one["steps"]
        ]
        rows += mine
        for one in made:
            _merge(tensors, one["tensors"])
        stages.append(
            {
                "stage": record["name"],
                "outputs": record["outputs"],
                "epochs": len(record["lengths"]),
                "steps": sum(record["lengths"]),
                "judged": len(mine),
            }
        )
        before += sum(record["lengths"])
    return {
        "every": every,
        "steps": before,
        "judged": len(rows),
        "stages": stages,
        "agree": sum(all(_good(row[dtype]) for dtype in dtypes) for row in rows),
        "open": sum(any(row[dtype]["open"] for dtype in dtypes) for row in rows),
        "beyond": sum(any(row[dtype]["excess"] for dtype in dtypes) for row in rows),
        "types": {dtype: _type(rows, dtype) for dtype in dtypes},
        "links": {"checked": links[0], "equal": links[1]},
        "series": _series(rows, dtypes),
        "tensors": tensors,
        "rows": rows,
    }


def _good(one: dict[str, Any]) -> bool:
    return not one["excess"] and not one["open"]


def _merge(tensors: dict[str, Any], more: dict[str, Any]) -> None:
    for dtype, names in more.items():
        for name, kinds in names.items():
            for kind, table in kinds.items():
                kept = tensors.setdefault(dtype, {}).setdefault(name, {}).setdefault(kind, {})
                for key, value in table.items():
                    if key not in kept or value[2] > kept[key][2]:
                        kept[key] = value


def _type(rows: list[dict[str, Any]], dtype: str) -> dict[str, Any]:
    """Of one type: how many steps agree, the worst shares, and what is beyond."""
    mine = [row[dtype] for row in rows]
    beyond = [row for row in rows if row[dtype]["excess"]]
    names = sorted({name for one in mine for name in one["shares"]})
    first = beyond[0] if beyond else None
    return {
        "agree": sum(map(_good, mine)),
        "open": sum(one["open"] for one in mine),
        "beyond": len(beyond),
        "first": first
        and {"stage": first["stage"], "step": first["step"], "total": first["total"]}
        | first[dtype]["excess"]
        | first[dtype].get("where", {}),
        "by_model": sum(one["by"] == "model" for one in mine),
        "on_other_sides": {
            name: sum(bool(one["sides"].get(name)) for one in mine) for name in names
        },
        "worst": {
            name: {
                kind: _most([one["shares"][name].get(kind) for one in mine])
                for kind in bounds.KINDS
            }
            for name in names
        },
    }


def _most(values: list[float | None]) -> float | None:
    """The largest; None, which is infinite, if there is one."""
    known = [value for value in values if value is not None]
    return None if len(known) < len(values) else max(known, default=0.0)


SHOWN = 240  # points of a curve


def _series(rows: list[dict[str, Any]], dtypes: tuple[str, ...]) -> dict[str, Any]:
    """By type, framework and kind, the largest share in each of at most 240 stretches of steps."""
    size = max(1, -(-len(rows) // SHOWN))
    parts = [rows[start : start + size] for start in range(0, len(rows), size)]
    names = {dtype: sorted({n for row in rows for n in row[dtype]["shares"]}) for dtype in dtypes}
    return {
        "step": [part[-1]["total"] for part in parts],
        "loss": [part[-1]["loss"] for part in parts],
        "share": {
            dtype: {
                name: {
                    kind: [
                        _most([row[dtype]["shares"][name].get(kind) for row in part])
                        for part in parts
                    ]
                    for kind in bounds.KINDS
                }
                for name in names[dtype]
            }
            for dtype in dtypes
        },
    }
