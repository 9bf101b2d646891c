"""`compare`: the questions in their order."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from itertools import permutations
from typing import Any

import jax.numpy as jnp
import numpy as np
import torch
from flax import nnx

from data.base.errors import UserError
from data.base.words import plural
from parity.checks.tolerance import UNIT
from parity.comparing import (
    carrying,
    causes,
    diagnosis,
    jax_side,
    single,
    torch_side,
    training,
    values,
)
from parity.comparing.carrying import Carried, Names
from parity.comparing.diagnosis import Finding, Search, Standing, Trial
from parity.comparing.pair import Loss, Pair, model_of, told
from parity.comparing.report import FLOAT32, Layer, Report, Section

LAYOUTS = ("found", "nchw to nhwc", "same")


def compare(
    torch_module: torch.nn.Module,
    jax_model: Any,
    inputs: Any,
    names: Names = None,
    train: bool = True,
    loss: Loss | None = None,
    optimizer: tuple[Any, Any] | None = None,
    *,
    carry: bool = True,
    layout: str = "found",
) -> Report:
    """Compare a PyTorch model with a JAX model in float64 and say where and why they differ.

    Args:
      torch_module: any module; it is copied, not changed.
      jax_model: a Flax NNX module (a Linen one through `nnx.bridge.ToNNX`, initialised), or
        (function, parameters) of a pure function `function(parameters, *inputs)`.
      inputs: one input of PyTorch's model or a tuple: tensors or NumPy arrays.
      names: which PyTorch layer is which JAX layer: a dict or a function of PyTorch's path, of
        those that shall not be matched by themselves.
      train: compare train mode, gradients and batch statistics too.
      loss: a pair of functions of the output, PyTorch's and JAX's, that gradients are taken of.
        Without: a fixed weighted sum of the outputs and their squares.
      optimizer: (a PyTorch optimiser or a function of parameters that makes one, an optax
        transformation).
      carry: give the JAX model PyTorch's weights. Otherwise its own are compared too.
      layout: how 4-dimensional inputs reach the JAX model: `nchw to nhwc`, `same`, or found.

    UserError if they cannot be compared.

    Example: `compare(torch.nn.Linear(3, 2), nnx.Linear(3, 2, rngs=nnx.Rngs(0)),
    torch.ones(1, 3)).passed` is True.

    """
    if layout not in LAYOUTS:
        raise UserError(f"layout is {layout!r}; it may be {', '.join(LAYOUTS)}")
    before = torch.get_num_threads()
    torch.set_num_threads(1)  # small arrays, many runs: threads would only wait for each other
    try:
        return _compared(
            torch_module, jax_model, inputs, names, train, loss, optimizer, carry, layout
        )
    finally:
        torch.set_num_threads(before)


def _compared(
    torch_module: torch.nn.Module,
    jax_model: Any,
    inputs: Any,
    names: Names,
    train: bool,
    loss: Loss | None,
    optimizer: tuple[Any, Any] | None,
    carry: bool,
    layout: str,
) -> Report:
    if not isinstance(torch_module, torch.nn.Module):
        raise UserError(
            f"the PyTorch model is a {type(torch_module).__name__}; give a torch.nn.Module"
        )
    training.check(loss, optimizer)
    theirs, given = torch_side.prepared(torch_module), _inputs(inputs)
    try:
        first = torch_side.run(theirs, given)
    except Exception as error:
        raise UserError(f"the PyTorch model fails on this input: {told(error)}") from error
    if not first.outputs:
        raise UserError("the PyTorch model gives no tensor of floating point")
    half = any(x.dtype in (torch.float16, torch.bfloat16) for x in _state(torch_module).values())
    best: tuple[int, Pair, jax_side.Program] | None = None
    for pair, program in _pairs(theirs, given, first, jax_model, names, layout, half):
        standing = pair.search(pair.run_jax(program)).standing(Trial())
        if best is None or standing.first > best[0]:
            best = standing.first, pair, program
        if standing.agree:
            break
    assert best is not None  # without any, _pairs raises
    _, pair, program = best
    report = Report(f"{type(torch_module).__name__} in PyTorch and {pair.ours.line} in JAX")
    _about_weights(report, pair.carried)
    if any(pair.turned):
        report.notes.append("Inputs were turned from NCHW to NHWC for JAX.")
    if half:
        report.notes.append("PyTorch's model computes in 16 bits; both were compared in float64.")
    if not carry:
        _weights(report, pair.carried, _arrays(theirs), pair.ours.weights)
    look, base, trial = _evaluate(report, pair, program)
    if train:
        training.compared(report, pair, look, base, trial, loss, optimizer)
    return report


def _inputs(inputs: Any) -> list[torch.Tensor]:
    result = []
    for place, x in enumerate(inputs if isinstance(inputs, tuple | list) else (inputs,)):
        if not isinstance(x, torch.Tensor) and not hasattr(x, "__array__"):
            raise UserError(
                f"inputs: number {place} is a {type(x).__name__}; give tensors or NumPy arrays, "
                "several as a tuple"
            )
        x = torch.as_tensor(np.array(x) if not isinstance(x, torch.Tensor) else x).detach().cpu()
        result.append(x.double() if x.is_floating_point() else x)
    return result


def _state(module: torch.nn.Module) -> dict[str, torch.Tensor]:
    """Parameters and buffers; those that are tied under each of their names."""
    return {
        **dict(module.named_parameters(remove_duplicate=False)),
        **dict(module.named_buffers(remove_duplicate=False)),
    }


def _arrays(module: torch.nn.Module) -> dict[str, np.ndarray]:
    return {name: x.detach().numpy() for name, x in _state(module).items()}


def _layouts(given: Sequence[torch.Tensor], layout: str) -> list[tuple[bool, ...]]:
    """Which inputs may have to reach JAX's model with channels last, the likeliest first."""
    images = tuple(x.ndim in (4, 5) for x in given)
    series = tuple(x.ndim == 3 for x in given)
    plain = tuple(False for _ in given)
    if layout == "same":
        return [plain]
    if layout != "found":
        return [images if any(images) else series]
    both = tuple(a or b for a, b in zip(images, series, strict=True))
    return list(dict.fromkeys([images, plain, both, series]))


def _pairs(
    theirs: torch.nn.Module,
    given: Sequence[torch.Tensor],
    first: torch_side.Run,
    jax_model: Any,
    names: Names,
    layout: str,
    half: bool = False,
) -> Iterator[tuple[Pair, jax_side.Program]]:
    """The two models and JAX's program, once for each way of giving it the inputs that it takes."""
    ours = model_of(jax_model, half=not half)
    errors, runs = [], 0
    for turned in _layouts(given, layout):
        arrays = [
            np.moveaxis(x.numpy(), 1, -1) if moved else x.numpy()
            for x, moved in zip(given, turned, strict=True)
        ]
        try:
            program = jax_side.Program(ours, arrays, exact=half)
        except Exception as error:
            errors.append(error)
            continue
        runs += 1
        carried = carrying.matched(
            carrying.torch_owners(theirs, first.used),
            carrying.jax_owners(ours, program.used),
            names,
        )
        weights = {**ours.weights, **carried.to_jax(_arrays(theirs))}
        yield (
            Pair(theirs, given, first, jax_model, ours, arrays, turned, half, carried, weights),
            program,
        )
    if not runs:
        raise UserError(f"the JAX model fails on this input: {told(errors[0])}") from errors[0]


def _about_weights(report: Report, carried: Carried) -> None:
    count = len(carried.pairs)
    by = {how: carried.by.count(how) for how in dict.fromkeys(carried.by)}
    told = ", ".join(f"{number} {how}" for how, number in by.items())
    report.weights.append(f"{count} layers matched: {told}.")
    for (theirs, ours), how in zip(carried.pairs, carried.by, strict=True):
        if how == "shape alone":
            report.weights.append(f"By shape alone: {theirs.name} is {ours.name}.")
    for group in carried.ambiguous:
        shown = ", ".join(group[:4]) + (f" and {len(group) - 4} more" if len(group) > 4 else "")
        report.weights.append(f"Told apart by the order of their use alone: {shown}.")
    if carried.torch_only:
        report.weights.append(f"JAX has no place for {', '.join(carried.torch_only[:8])}.")
    if carried.jax_only:
        report.weights.append(f"PyTorch has nothing for JAX's {', '.join(carried.jax_only[:8])}.")


def _weights(
    report: Report,
    carried: Carried,
    state: Mapping[str, np.ndarray],
    own: Mapping[str, np.ndarray],
) -> None:
    """Are the weights the same? Without carrying them across."""
    right = carried.to_jax(state)
    # weights that went through float32 on the way are the same weights
    apart = {name: values.distance(own[name], x) for name, x in right.items()}
    wrong = {name: size for name, size in apart.items() if size > 2.0**-22}
    worst = max(apart.values(), default=0.0)
    report.sections.append(Section("weights", f"{len(right)} arrays", worst, not wrong))
    taken: set[str] = set()
    for name, size in wrong.items():
        if name in taken:
            continue
        cause, words, after, others = _weight_cause(name, own, right, wrong)
        taken |= set(others)
        path = carried.torch_name(name)
        report.findings.append(
            Finding("weights", path, "", "", name, "", size, cause, words, after, len(others))
        )


def _weight_cause(
    name: str,
    own: Mapping[str, np.ndarray],
    right: Mapping[str, np.ndarray],
    wrong: Mapping[str, float],
) -> tuple[str, str, float | None, list[str]]:
    mine, target = own[name], right[name]
    tries: list[tuple[str, str, np.ndarray]] = []
    if target.ndim > 2:
        window = tuple(range(target.ndim - 2))
        tries.append(("flipped kernel", "JAX's kernel is flipped", np.flip(target, window)))
    for axes in permutations(range(target.ndim)) if target.ndim > 1 else ():
        turned = target.transpose(axes)
        if turned.shape == mine.shape and axes != tuple(range(target.ndim)):
            told = f"JAX's kernel has its axes in the order {axes}"
            tries.append(("transposed kernel", told, turned))
    tries += [
        ("channel order", f"JAX's array is reversed along axis {axis}", np.flip(target, axis))
        for axis in range(target.ndim)
    ]
    if target.ndim == 1:
        tries.append(("bias", "JAX's array is nought", np.zeros_like(target)))
    for cause, words, other in tries:
        if values.distance(mine, other) < 2.0**-22 or not (mine.any() or other.any()):
            return cause, words, float(np.abs(mine - other).max()), [name]
    twins = {
        key: key
        for key in wrong
        if key != name
        and right[key].shape == target.shape
        and values.distance(mine, right[key]) < 2.0**-22
    }
    if twins:
        twin = next(iter(twins))
        gates = ".i" in name or ".h" in name
        cause = "gate order" if gates else "weights exchanged"
        words = f"JAX's {name} holds what belongs to {twin}"
        others = [
            key
            for key in wrong
            if any(
                values.distance(own[key], right[k]) < 2.0**-22
                for k in wrong
                if k != key and right[k].shape == own[key].shape
            )
        ]
        return cause, words, values.distance(mine, right[twin]), others
    for count in (4, 3):
        if target.shape[-1] % count == 0:
            parts = np.split(target, count, axis=-1)
            for order in permutations(range(count)):
                other = np.concatenate([parts[k] for k in order], axis=-1)
                if values.distance(mine, other) < 2.0**-22:
                    told = f"JAX's gates are in the order {order}"
                    return "gate order", told, values.distance(mine, other), [name]
    return "", "", None, [name]


def _evaluate(report: Report, pair: Pair, program: jax_side.Program) -> tuple[Search, Trial, Trial]:
    """Evaluation mode: what looked in it, and two trials.

    With the first PyTorch's model has JAX's constants, with the second it does what JAX's does.
    """
    run = pair.run_jax(program)
    look = pair.search(run)
    trial = Trial()
    start = look.standing(trial)
    _shapes(report, start, run)
    for candidate in causes.constants(start.run):
        then = look.standing(trial.with_(candidate))
        if then.difference < start.difference / 10 or then.first > start.first:
            report.notes.append(f"{candidate.words}; it was compared with them in float64.")
            trial, start = trial.with_(candidate), then
    rounded = None if start.agree else look.rounded(start)
    if rounded is not None:
        then = look.standing(trial.with_(rounded))
        if then.difference < start.difference / 10 or then.first > start.first:
            report.notes.append(f"{rounded.words}; both were compared with JAX's.")
            trial, start = trial.with_(rounded), then
    report.layers = _layers(look, start)
    base = trial
    count = len(start.run.outputs)
    findings = []
    opening = start
    for cause, words, wanted in (
        ("dropout", "JAX drops values at random in evaluation", run.random),
        (
            "bfloat16",
            "JAX computes in 16 bits where PyTorch does not",
            run.half and not pair.half,
        ),
    ):
        if not wanted or start.agree:
            continue
        model = model_of(pair.jax_model, dropout=cause != "dropout", half=cause != "bfloat16")
        exact = jax_side.Program(model, pair.arrays, exact=cause == "bfloat16")
        other = pair.search(pair.run_jax(exact))
        then = other.standing(trial)
        if then.agree or then.first > start.first:
            origin = start.run.values[start.origins[0]]
            call = start.run.calls[origin.made_by]
            if cause == "dropout":
                before = {start.run.values[k].made_by for k in call.inputs} - {-1}
                drops = [k for k in before if start.run.calls[k].name == "dropout"]
                call = start.run.calls[drops[0]] if drops else call
            path, line = look.jax_place(start)
            findings.append(
                Finding(
                    "evaluation",
                    call.path,
                    call.name,
                    call.line,
                    path,
                    line,
                    look._difference(start, call),
                    cause,
                    words,
                    then.difference,
                )
            )
            look, start = other, then
    for finding, better in look.causes(trial):
        findings.append(finding)
        trial = better
    findings = [*_dropped(pair, look, trial), *findings]
    report.sections.append(
        Section(
            "forward, evaluation",
            f"{count} output{'s' * (count > 1)}",
            opening.difference,
            not findings,
        )
    )
    report.findings += diagnosis.merged(findings)
    if not findings and not run.half and not pair.half:
        _float32(report, pair, look, trial)
    return look, base, trial


def _dropped(pair: Pair, look: Search, trial: Trial) -> list[Finding]:
    """PyTorch's own dropout in evaluation, which the comparison leaves out."""
    then = look.standing(trial)
    if not then.run.dropped:
        return []
    whole = then.run.values
    with torch.random.fork_rng(devices=[]):
        loud = pair.run_torch(trial, dropout=True)
    apart = max(
        values.distance(loud.values[a].array, whole[b].array)
        for a, b in zip(loud.outputs, then.run.outputs, strict=True)
    )
    call = then.run.calls[then.run.dropped[0]]
    words = "PyTorch drops values at random in evaluation (a dropout not told `training`)"
    return [
        Finding(
            "evaluation",
            call.path,
            "dropout",
            call.line,
            "",
            "",
            apart,
            "dropout" if then.agree else "",
            words,
            then.difference if then.agree else None,
            len(then.run.dropped),
        )
    ]


def _float32(report: Report, pair: Pair, look: Search, trial: Trial) -> None:
    """Where float64 agrees: is either's float32 further from it than rounding takes it?"""
    matched = look.standing(trial).matched

    def judged(model: jax_side.Model) -> list[single.Errors] | None:
        exact = pair.run_jax(jax_side.Program(model, pair.arrays))
        narrow = pair.run_jax(jax_side.Program(model, pair.arrays, single=True))
        known = matched
        if model is not pair.ours:
            known = replace(pair, ours=model).search(exact).standing(trial).matched
        return single.errors(pair.theirs, pair.given, trial, known, exact, narrow)

    found = judged(pair.ours)
    if found is None:
        report.notes.append("float32 was not judged: it makes other calls than float64.")
        return
    by_call = {one.index: one for one in found}
    calls = [call for call in look.standing(trial).run.calls if call.output >= 0]
    report.layers = [
        replace(layer, errors=(one.jax, one.torch), allowed=one.allowed)
        if (one := by_call.get(call.index))
        else layer
        for layer, call in zip(report.layers, calls, strict=True)
    ]
    beyond = single.first_beyond(found)
    most = max((max(one.jax or 0.0, one.torch) for one in found), default=0.0) * UNIT
    report.sections.append(
        Section(FLOAT32, f"{len(found)} values, against float64", most, not beyond)
    )
    if not beyond:
        return
    one, who = beyond
    call = next(call for call in calls if call.index == one.index)
    off = one.torch if who == "PyTorch" else one.jax or 0.0
    words = (
        f"{who}'s float32 is {off:.2g} units in the last place from float64, where rounding "
        f"allows {one.allowed:.2g}"
    )
    cause, after = "", None
    model = single.without_fast_variance(pair.jax_model) if who == "JAX" else None
    if model is not None:
        other = judged(model_of(model)) or []
        now = next((e for e in other if e.index == one.index), None)
        if now and now.jax is not None and now.jax <= now.allowed:
            cause, after = "fast variance", now.jax / now.allowed
            words += "; JAX takes the variance as the mean square less the squared mean"
    number = matched[call.output]
    value = look.ours.values[number] if number >= 0 else None
    report.findings.append(
        Finding(
            "float32",
            call.path,
            call.name,
            call.line,
            value.path if value else "",
            value.line if value else "",
            off * UNIT,
            cause,
            words,
            after,
        )
    )


def _shapes(report: Report, standing: Standing, run: jax_side.Run) -> None:
    theirs = [standing.run.values[k].array.shape for k in standing.run.outputs]
    ours = [run.values[k].array.shape for k in run.outputs if k >= 0]
    if len(theirs) != len(ours):
        raise UserError(
            f"PyTorch's model gives {plural(len(theirs), 'output')} of floating point, JAX's "
            f"{len(ours)}: return the same"
        )
    for a, b in zip(theirs, ours, strict=True):
        if int(np.prod(a)) != int(np.prod(b)):
            report.notes.append(f"Outputs are of shape {a} in PyTorch, {b} in JAX.")


def _layers(look: Search, standing: Standing) -> list[Layer]:
    result = []
    for call in standing.run.calls:
        if call.output < 0:
            continue
        value = standing.run.values[call.output]
        other = standing.matched[call.output]
        apart = None
        if other >= 0:
            x, y = (
                np.sort(values.bounded(a).ravel())
                for a in (value.array, look.ours.values[other].array)
            )
            scale = float(np.abs(x).max(initial=0.0)) or 1.0
            same = x.size == y.size
            apart = float(np.abs(x - y).max(initial=0.0)) / scale if same else 0.0
        result.append(Layer(call.path, call.name, value.array.shape, apart))
    return result


def carry_weights(torch_module: torch.nn.Module, nnx_module: nnx.Module, inputs: Any) -> None:
    """Give an NNX module the weights of a PyTorch module, in the types of its own.

    UserError if they cannot be told apart or run.
    """
    theirs, given = torch_side.prepared(torch_module), _inputs(inputs)
    first = torch_side.run(theirs, given)
    pair, _ = next(_pairs(theirs, given, first, nnx_module, None, "found"))
    right = pair.carried.to_jax(_arrays(theirs))
    for path, variable in nnx.to_flat_state(nnx.state(nnx_module, (nnx.Param, nnx.BatchStat))):
        name = jax_side.path_of(path)
        if name in right:
            variable[...] = jnp.asarray(right[name], variable[...].dtype)
    nnx.update(nnx_module, nnx.state(nnx_module))
