"""Train mode of two models: their outputs, statistics, loss, gradients and optimisers."""

import copy
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import jax.numpy as jnp
import numpy as np
import torch

from data.base.errors import UserError
from parity.comparing import diagnosis, jax_side, optimisers, torch_side, values
from parity.comparing.diagnosis import Finding, Search, Trial
from parity.comparing.pair import Loss, Pair, told
from parity.comparing.report import Report, Section
from parity.comparing.values import SAME

# A gradient that is nought in exact arithmetic, as a bias before a batch norm has, is rounding of
# the size of others: what is smaller than this share of the largest gradient has that for a scale.
FLOOR = 1e-4


def check(loss: Any, optimizer: Any) -> None:
    """UserError if these are not what `compare` takes."""
    if loss is not None and not (_pair(loss) and all(callable(f) for f in loss)):
        raise UserError("loss: give a pair of functions of the output, PyTorch's and JAX's")
    if optimizer is None:
        return
    if not _pair(optimizer):
        raise UserError("optimizer: give a pair, PyTorch's and an optax transformation")
    optimisers.torch_maker(optimizer[0])
    if not (hasattr(optimizer[1], "init") and hasattr(optimizer[1], "update")):
        raise UserError("optimizer: the second is no optax transformation")


def _pair(given: Any) -> bool:
    return isinstance(given, tuple | list) and len(given) == 2


def _default_loss(theirs: Sequence[np.ndarray], ours: Sequence[np.ndarray]) -> Loss:
    """Of outputs like these: of PyTorch's, and the same of JAX's."""
    rng = np.random.default_rng(0)
    arrays = [rng.normal(size=x.shape) for x in theirs]
    moved = [values.channels_first(y, x) for x, y in zip(theirs, ours, strict=True)]

    def of_torch(outputs: Any) -> Any:
        return sum(
            (torch.tensor(w) * y + 0.1 * y**2).sum() for w, y in zip(arrays, outputs, strict=True)
        )

    def of_jax(outputs: Any) -> Any:
        total = 0.0
        for w, move, y in zip(arrays, moved, outputs, strict=True):
            y = y.astype(jnp.promote_types(y.dtype, jnp.float32))
            y = (jnp.moveaxis(y, -1, 1) if move else y).reshape(w.shape)
            total = total + (w * y + 0.1 * y**2).sum()
        return total

    return of_torch, of_jax


def compared(
    report: Report,
    pair: Pair,
    evaluated: Search,
    base: Trial,
    trial: Trial,
    loss: Loss | None,
    optimizer: tuple[Any, Any] | None,
) -> None:
    """Add to a report what train mode shows. For `loss` and `optimizer` see `compare`.

    `evaluated`, `base` and `trial`: what evaluation gave, the trial with JAX's constants alone and
    that with which PyTorch's model does there what JAX's does.
    """
    if any(not found.cause for found in report.findings if found.stage == "evaluation"):
        report.notes.append("Train mode was not searched: evaluation differs without a cause.")
        return
    if loss is None:
        standing = evaluated.standing(trial)
        of_torch, of_jax = _default_loss(
            [standing.run.values[number].array for number in standing.run.outputs],
            [evaluated.ours.values[number].array for number in evaluated.ours.outputs],
        )
    else:
        pick = _only if len(pair.first.outputs) == 1 else list
        of_torch, of_jax = (lambda y, f=f: f(pick(y)) for f in loss)
    instead = "(train=False and --evaluation leave train mode out)"

    def run_of(pair: Pair, *, exact: bool = False) -> jax_side.Run:
        try:
            program = jax_side.Program(
                pair.ours, pair.arrays, train=True, loss=of_jax, exact=exact or pair.half
            )
        except Exception as error:
            raise UserError(
                f"the JAX model or its loss fails in train mode {instead}: {told(error)}"
            ) from error
        return pair.run_jax(program)

    start = Trial(trial.changes, trial.buffers)
    try:
        pair.run_torch(start, train=True, loss=of_torch)
    except Exception as error:
        raise UserError(
            f"the PyTorch model or its loss fails in train mode {instead}: {told(error)}"
        ) from error
    run = run_of(pair)
    if run.random:
        report.notes.append("JAX's model draws random numbers in train mode, not by a dropout.")
    look = pair.search(run, train=True)
    known = {
        (found.path, found.operation)
        for found in report.findings
        if found.cause != "batch statistics in evaluation"
    }
    if any(found.cause == "batch statistics in evaluation" for found in report.findings):
        start = base
    before = look.standing(base)
    if any(found.cause == "bfloat16" for found in report.findings):
        pair = pair.in_full_width()
        run = run_of(pair, exact=True)
        look = pair.search(run, train=True)
    findings = []
    for finding, better in look.causes(start):
        if (finding.path, finding.operation) not in known:
            findings.append(finding)
        start = better
    report.sections.append(
        Section("forward, training", "outputs, dropout off", before.difference, before.agree)
    )
    report.findings += diagnosis.merged(findings)
    if any(not found.cause for found in findings):
        return
    how: dict[str, Any] = {"train": True, "loss": of_torch}
    look = pair.search(run, **how)
    _statistics(report, pair, look, start)
    _gradients(report, pair, look, start, how)
    if optimizer is not None:
        _optimiser(report, pair.theirs, look.run(start), optimizer)


def _only(outputs: Sequence[Any]) -> Any:
    return outputs[0]


def _statistics(report: Report, pair: Pair, look: Search, trial: Trial) -> None:
    run, carried = look.ours, pair.carried
    names = [name for name in run.state if name not in pair.ours.trained]
    if not names:
        return

    def apart(theirs: torch_side.Run) -> dict[str, float]:
        right = carried.to_jax(theirs.state)  # in the order of the layers
        return {
            name: values.distance(np.asarray(run.state[name]), x)
            for name, x in right.items()
            if name in names
        }

    sizes = apart(look.run(trial))
    worst = max(sizes.values(), default=0.0)
    report.sections.append(
        Section("batch statistics", f"{len(sizes)} arrays", worst, worst <= SAME)
    )
    if worst <= SAME:
        return
    frozen = any(f.cause == "running statistics in training" for f in report.findings)
    if frozen:
        return
    momentum = [layer.momentum for layer in pair.ours.layers.values() if hasattr(layer, "momentum")]
    found = diagnosis.statistics(look.run, trial, apart, list(dict.fromkeys(momentum)))
    for cause, words, name, before, after, _ in found:
        path = carried.torch_name(name).rpartition(".")[0]
        places = sum(size > SAME for size in sizes.values())
        report.findings.append(
            Finding(
                "statistics",
                path,
                "batch_norm",
                "",
                name,
                "",
                before,
                cause,
                words,
                after if cause else None,
                places,
            )
        )


def _untied(module: torch.nn.Module) -> torch.nn.Module:
    """A copy in which every layer has weights of its own."""
    module, seen = copy.deepcopy(module), set()
    for layer in module.modules():
        for name, x in list(layer.named_parameters(recurse=False)):
            if id(x) in seen:
                setattr(layer, name, torch.nn.Parameter(x.detach().clone()))
            seen.add(id(x))
    return module


def _gradients(
    report: Report, pair: Pair, look: Search, trial: Trial, how: Mapping[str, Any]
) -> None:
    """`how`: of the runs that `look` makes."""
    run, carried = look.ours, pair.carried

    def apart(theirs: torch_side.Run) -> dict[str, float]:
        right = carried.to_jax(theirs.gradients, gradients=True)
        for place in range(len(pair.given)):
            name = f"input {place}"
            if name in run.gradients and name in theirs.gradients:
                x = theirs.gradients[name]
                right[name] = np.moveaxis(x, 1, -1) if pair.turned[place] else x
        most = max((float(np.abs(x).max(initial=0.0)) for x in right.values()), default=1.0)
        return {
            name: float(np.abs(np.asarray(run.gradients[name]) - x).max(initial=0.0))
            / (max(float(np.abs(x).max(initial=0.0)), FLOOR * most) or 1.0)
            for name, x in right.items()
            if name in run.gradients
        }

    theirs = look.run(trial)
    sizes = apart(theirs)
    worst = max(sizes.values(), default=0.0)
    scale = max(abs(theirs.loss), 1e-300)
    same = abs(run.loss - theirs.loss) <= SAME * max(scale, 1.0)
    report.sections.append(Section("loss", "", abs(run.loss - theirs.loss) / scale, same))
    report.sections.append(Section("gradients", f"{len(sizes)} arrays", worst, worst <= SAME))
    if worst <= SAME:
        return
    name = max(sizes, key=lambda key: sizes[key])
    tied = [theirs for theirs, _ in carried.pairs if theirs.tied]
    if tied:
        untied = replace(pair, theirs=_untied(pair.theirs)).search(run, **how).run(trial)
        left = max(apart(untied).values(), default=0.0)
        if left <= SAME:
            words = f"PyTorch ties {tied[0].name} to a weight that JAX has twice"
            where = Finding("gradients", tied[0].name, "", "", name, "", sizes[name])
            report.findings.append(
                replace(where, cause="tied weights", words=words, after=left, places=len(tied))
            )
            return
    found = diagnosis.stopped(look.run, trial, lambda r: max(apart(r).values(), default=0.0))
    places = sum(size > SAME for size in sizes.values())
    if found is None:
        report.findings.append(
            Finding(
                "gradients",
                carried.torch_name(name) or name,
                "",
                "",
                name,
                "",
                sizes[name],
                places=places,
            )
        )
        return
    call, left = found
    report.findings.append(
        Finding(
            "gradients",
            call.path,
            call.name,
            call.line,
            name,
            "",
            sizes[name],
            "gradient stopped",
            "JAX passes no gradient on from here (stop_gradient)",
            left,
        )
    )


def _optimiser(
    report: Report, theirs: torch.nn.Module, run: torch_side.Run, optimizer: tuple[Any, Any]
) -> None:
    start = {name: p.detach().numpy().copy() for name, p in theirs.named_parameters()}
    one, most, cause, words, after = optimisers.diagnosed(optimizer, start, run.gradients)
    report.sections.append(
        Section("optimiser", f"1 and {optimisers.STEPS} steps", most, most <= SAME)
    )
    if most > SAME:
        report.findings.append(
            Finding("optimiser", "", "", "", "", "", one or most, cause, words, after)
        )
