"""What training changes, as a checkpoint stores it."""

from typing import Any

from torch.optim import Optimizer


class TrainingState:
    """A base of dataclasses whose fields all have a `state_dict`: networks, optimiser, schedule."""

    optimizer: Optimizer

    def state_dict(self) -> dict[str, Any]:
        """All of it as plain values and tensors."""
        return {name: getattr(self, name).state_dict() for name in vars(self)}

    def load_state_dict(self, values: dict[str, Any]) -> None:
        """Overwrite it with `state_dict`'s values."""
        for name in vars(self):
            getattr(self, name).load_state_dict(values[name])
