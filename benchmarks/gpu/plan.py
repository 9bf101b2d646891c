"""What is done on a GPU: stages of jobs, as data in `stages.toml` and `trees.toml`."""

import itertools
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from fnmatch import fnmatchcase
from functools import partial
from pathlib import Path
from typing import Any

from data.base import reading
from data.base.errors import UserError

HERE = Path(__file__).parent
_JOB: reading.Form = {
    "name": str,
    "what": str,
    "command": [str],
    "needs": float,
    "resumes?": bool,
    "bar?": str,
    "environment?": {str: str},
    "after?": str,
    "dry?": [str],
    "each?": {str: [str]},
}
_STAGE: reading.Form = {
    "number": int,
    "title": str,
    "share": float,
    "alone?": bool,
    "job": [_JOB],
}
_TREE: reading.Form = {
    "recipe": str,
    "dataset": str,
    "backbones": [str],
    "seeds": [int],
    "needs": float,
    "grouping?": str,
}


@dataclass(frozen=True)
class Job:
    """One command, in a process of its own.

    Attributes:
      name: of its files; no other job has it.
      what: how the table calls it.
      command: a module and its arguments. `{data}` stands for the folder of datasets, `{runs}`
        for that of training runs, `{folder}` for the job's own. `--json FILE` is added.
      needs_s: seconds that it is expected to take; it is not begun with less.
      resumes: it can be stopped at any time and goes on when it is called again.
      bar: what its result is held to, in words; empty for nothing.
      environment: variables that it is given.
      after: the job of its stage that it needs; empty for none.
      dry: arguments that make it a rehearsal of seconds, after the others; None: no rehearsal.

    """

    name: str
    what: str
    command: tuple[str, ...]
    needs_s: float
    resumes: bool = False
    bar: str = ""
    environment: tuple[tuple[str, str], ...] = ()
    after: str = ""
    dry: tuple[str, ...] | None = None


@dataclass(frozen=True)
class Stage:
    """Jobs in order of worth.

    Attributes:
      share: of the time, in proportion to the other stages'.
      alone: its jobs are timed, so that no other may run beside them.

    """

    number: int
    title: str
    share: float
    jobs: tuple[Job, ...]
    alone: bool = False


def stages(file: Path = HERE / "stages.toml", trees: Path = HERE / "trees.toml") -> list[Stage]:
    """All stages, those of `trees` in the one that has no jobs of its own.

    UserError if a file is not of this form or two jobs have one name.
    """
    table = _read(file, {"stage": [_STAGE]})["stage"]
    result = [
        Stage(
            row["number"],
            row["title"],
            float(row["share"]),
            tuple(job for entry in row["job"] for job in _jobs(entry)) or tuple(_trees(trees)),
            row.get("alone", False),
        )
        for row in table
    ]
    names = [job.name for stage in result for job in stage.jobs]
    if twice := sorted({name for name in names if names.count(name) > 1}):
        raise UserError(f"{file}: two jobs are called {', '.join(twice)}")
    return result


def chosen(plan: Sequence[Stage], patterns: Sequence[str]) -> list[Stage]:
    """The stages with only those jobs whose names match a pattern, in the patterns' order.

    UserError if a pattern matches none.
    """
    names = [job.name for stage in plan for job in stage.jobs]
    for pattern in patterns:
        if not any(fnmatchcase(name, pattern) for name in names):
            raise UserError(f"--jobs {pattern}: there is no such job; --list names them all")

    def first(job: Job) -> int:
        """The first pattern that the job's name matches; behind the last one if it has none."""
        matches = (fnmatchcase(job.name, pattern) for pattern in patterns)
        return next((place for place, match in enumerate(matches) if match), len(patterns))

    return [
        replace(
            stage,
            jobs=tuple(sorted((j for j in stage.jobs if first(j) < len(patterns)), key=first)),
        )
        for stage in plan
    ]


def _read(file: Path, form: reading.Form) -> dict[str, Any]:
    table = reading.toml_file(file)
    try:
        reading.need(table, form)
    except ValueError as error:
        raise UserError(f"{file} is no plan ({error})") from None
    return table


def _jobs(row: dict[str, Any]) -> Iterator[Job]:
    """A job for each combination of the values in `each`; `<key>` stands for a value."""
    each = row.get("each", {})
    for place, values in enumerate(itertools.product(*each.values())):
        filled = partial(_filled, list(zip(each, values, strict=True)))
        # one of several that differ in a value is rehearsal enough
        dry = tuple(row["dry"]) if "dry" in row and place == 0 else None
        yield Job(
            filled(row["name"]),
            filled(row["what"]),
            tuple(map(filled, row["command"])),
            row["needs"],
            row.get("resumes", False),
            row.get("bar", ""),
            tuple((key, filled(value)) for key, value in row.get("environment", {}).items()),
            row.get("after", ""),
            dry,
        )


def _filled(values: list[tuple[str, str]], text: str) -> str:
    for key, value in values:
        text = text.replace(f"<{key}>", value)
    return text


def _trees(file: Path) -> Iterator[Job]:
    """Trainings of whole trees, and of the networks that they are compared with.

    Each with its first seed, then each with its second: a comparison needs one of all of them.
    """
    first = True
    rows = _read(file, {"tree": [_TREE]})["tree"]
    for place in range(max(len(row["seeds"]) for row in rows)):
        for row, backbone in [
            (each, backbone)
            for each in rows
            for backbone in each["backbones"]
            if place < len(each["seeds"])
        ]:
            seed = row["seeds"][place]
            grouping = ("--grouping", row["grouping"]) if "grouping" in row else ()
            kind = "-".join([Path(row["recipe"]).stem, backbone, *grouping[1:]])
            name = f"{row['dataset']}-{kind}-seed{seed}"
            command = (
                "trunk_jax.train",
                "--dataset",
                row["dataset"],
                "--recipe",
                row["recipe"],
                "--backbone",
                backbone,
                *grouping,
                "--seed",
                str(seed),
                "--data-dir",
                "{data}",
                "--out",
                "{runs}/" + name,
                "--resume",
            )
            what = ", ".join(
                [row["dataset"], f"recipe {row['recipe']}", backbone]
                + ([f"grouping {row['grouping']}"] if grouping else [])
                + [f"seed {seed}"]
            )
            # digits in their place, which need no data
            rehearsed = ("--dataset", "digits", "--epochs", "1", "--limit", "64")
            dry = rehearsed if first else None
            yield Job(name, what, command, row["needs"], resumes=True, dry=dry)
            first = False
