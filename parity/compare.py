"""`python -m parity.compare TORCH JAX`: do your two models compute the same? Where not, and why."""

import importlib
import re
import sys
from pathlib import Path
from typing import Any

import torch

from data.base import reading, writing
from data.base.errors import UserError, run_command
from data.base.parser import Parser, target
from parity.comparing.comparison import LAYOUTS, carry_weights, compare
from parity.comparing.report import Report

__all__ = ["Report", "carry_weights", "compare"]


def made(place: str) -> Any:
    """What the factory `module:name` gives, called without arguments.

    UserError if there is no such module or name, or if the factory fails.
    """
    module, separator, name = place.partition(":")
    if not separator or not name:
        raise UserError(f"{place}: write module:function, as in mymodels.vit:make")
    sys.path.insert(0, "")
    try:
        found = importlib.import_module(module)
    except Exception as error:
        raise UserError(f"{place}: importing {module} fails: {_told(error)}") from error
    finally:
        sys.path.remove("")
    if not callable(getattr(found, name, None)):
        raise UserError(f"{place}: {module} has no function {name}")
    try:
        return getattr(found, name)()
    except Exception as error:
        raise UserError(f"{place}: it fails: {_told(error)}") from error


def _told(error: Exception) -> str:
    return f"{type(error).__name__}: {' '.join(str(error).split())[:200]}"


def example(text: str, seed: int) -> torch.Tensor:
    """The input that `2x3x32x32` (normal numbers) or `2x16:50` (whole ones below 50) stands for.

    UserError if it is neither.
    """
    match = re.fullmatch(r"(\d+(?:x\d+)*)(?::(\d+))?", text)
    if match is None:
        raise UserError(
            f"--input {text}: write a shape like 2x3x224x224, or 2x16:50 for whole numbers below 50"
        )
    shape = tuple(int(size) for size in match[1].split("x"))
    if 0 in shape or (match[2] and not int(match[2])):
        raise UserError(f"--input {text}: it holds nothing; every number must be at least 1")
    generator = torch.Generator().manual_seed(seed)
    if match[2]:
        return torch.randint(int(match[2]), shape, generator=generator)
    return torch.randn(shape, generator=generator)


def loaded(module: torch.nn.Module, file: Path) -> None:
    """Put a file's weights (safetensors, or a state_dict that torch.load reads) into a module.

    UserError if they do not fit.
    """
    if not file.is_file():
        raise UserError(f"--weights {file}: no such file")
    try:
        if file.suffix == ".safetensors":
            from safetensors.torch import load_file

            state = load_file(file)
        else:
            state = torch.load(file, map_location="cpu", weights_only=True)
        module.load_state_dict(state)
    except Exception as error:
        raise UserError(f"--weights {file}: {_told(error)}") from error


def main(arguments: list[str]) -> int:
    """Compare as the flags say: 0 if both compute the same, 1 if not."""
    parser = Parser(
        prog="python -m parity.compare",
        description="Do a PyTorch model and its JAX port compute the same? If not: where do they "
        "first differ, and why?",
    )
    add = parser.add_argument
    add("torch", metavar="TORCH", help="module:function that gives the torch.nn.Module")
    add(
        "jax",
        metavar="JAX",
        help="module:function that gives the Flax NNX module, or (function, parameters)",
    )
    add(
        "--input",
        metavar="SHAPE",
        action="append",
        required=True,
        help="a shape, as PyTorch's "
        "model takes it: 2x3x224x224, or 2x16:50 for whole numbers below 50; again for each "
        "further input",
    )
    add(
        "--names",
        metavar="FILE",
        help="JSON: which PyTorch layer is which JAX layer (default: found)",
    )
    add(
        "--weights",
        metavar="FILE",
        help="weights for the PyTorch model: safetensors, "
        "or a state_dict (default: as the function makes them)",
    )
    add(
        "--own-weights",
        action="store_true",
        help="leave the JAX model its own weights, and "
        "compare them too (default: it is given PyTorch's)",
    )
    add(
        "--evaluation",
        action="store_true",
        help="evaluation alone: no train mode, no gradients (default: all)",
    )
    add(
        "--layout",
        choices=LAYOUTS,
        default="found",
        help="how images reach the JAX model (default: %(default)s)",
    )
    add("--seed", type=int, default=0, help="of the input (default: %(default)s)")
    add("--html", type=target, metavar="FILE", help="also write a page (default: none)")
    add("--json", type=target, metavar="FILE", help="also write the result (default: none)")
    options = parser.parse_args(arguments)
    inputs = tuple(example(text, options.seed + place) for place, text in enumerate(options.input))
    names = None
    if options.names:
        names = reading.json_file(Path(options.names))
        if not isinstance(names, dict) or not all(isinstance(x, str) for x in names.values()):
            raise UserError(f"--names {options.names}: not an object of names")
    module = made(options.torch)
    if not isinstance(module, torch.nn.Module):
        raise UserError(f"{options.torch} gives a {type(module).__name__}, not a torch.nn.Module")
    if options.weights:
        loaded(module, Path(options.weights))
    report = compare(
        module,
        made(options.jax),
        inputs,
        names,
        train=not options.evaluation,
        carry=not options.own_weights,
        layout=options.layout,
    )
    print(report)
    if options.html:
        writing.save_bytes(options.html, report.as_html().encode())
    if options.json:
        writing.save_json(options.json, report.as_json())
    return 0 if report.passed else 1


if __name__ == "__main__":
    run_command(lambda: main(sys.argv[1:]))
