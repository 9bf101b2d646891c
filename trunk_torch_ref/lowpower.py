"""`python -m trunk_torch_ref.lowpower`: one small CNN and four ways to make it smaller."""

import sys
import time
from typing import Any

from data.base.errors import run_command
from data.base.progress import working
from data.base.streams import integer
from data.run import lowpower
from trunk_torch_ref.machine import settings


def main(arguments: list[str] | None = None) -> None:
    """Measure as the flags say. UserError for anything a user can put right."""
    options = lowpower.options_of("torch", arguments)
    with working("measuring a small network and four smaller forms of it"):
        device, rows = _measure(options)
    lowpower.report(options, "torch", device, rows)


def _measure(options: lowpower.Options) -> tuple[str, dict[str, dict[str, Any]]]:
    """The device's kind, and what `lowpower.report` shows of each form."""
    settings.apply()
    import numpy as np
    import torch
    from torch import nn

    from trunk_torch_ref.framework import device
    from trunk_torch_ref.inference.load import channel_first
    from trunk_torch_ref.machine.devices import where
    from trunk_torch_ref.measure.costs import cost
    from trunk_torch_ref.network.calls import recorded
    from trunk_torch_ref.network.exchange import to_state_dict
    from trunk_torch_ref.network.network import seeded
    from trunk_torch_ref.shrink.lowpower import base, compressed, forms

    def structure(module: nn.Module, x: torch.Tensor) -> list[str]:
        with recorded(m for m in module.modules() if not any(m.children())) as calls:
            module(x)
        sizes = [("x".join(map(str, t.shape[1:])) for t in call[1:]) for call in calls]
        names = [type(layer).__name__ for layer, _, _ in calls]
        return [f"{n:<18} {' to '.join(pair)}" for n, pair in zip(names, sizes, strict=True)]

    def milliseconds(module: nn.Module, x: torch.Tensor) -> float:
        taken = []
        for _ in range(options.repeats + 2):  # two to warm up
            began = time.perf_counter()
            module(x)[1].cpu()
            taken.append(time.perf_counter() - began)
        return 1e3 * float(np.median(taken[2:]))

    pixels = lowpower.images(options.seed, options.images).transpose(0, 3, 1, 2)
    x = torch.tensor(np.ascontiguousarray(pixels), device=where())
    with seeded(integer(options.seed, "lowpower", "weights")):
        start, other = base(), compressed()
    rows, first = {}, None
    with torch.no_grad():
        for name, module in forms(start.to(where()), other.to(where())).items():
            with working(f"measuring the form {name}"):
                out = module(x)[1].cpu().numpy()
                first = out if first is None else first
                costs = cost(module, channel_first(lowpower.IMAGE))
                rows[name] = {
                    "structure": structure(module, x[:1]),
                    "bytes": sum(array.nbytes for array in to_state_dict(module).values()),
                    **costs,
                    "flops": 2 * costs["multiply_adds"],
                    "ms": milliseconds(module, x[:1]),
                    **lowpower.agreement(out, first),
                }
    return device()["kind"], rows


if __name__ == "__main__":
    run_command(lambda: main(sys.argv[1:]))
