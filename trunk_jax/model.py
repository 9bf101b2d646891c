"""What a Python program uses: load a finished tree, ask it, grow one."""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from data.base.errors import UserError
from data.inference.model import Answer
from data.inference.shipped import run_of
from data.run.options import arguments_of
from trunk_jax.inference import model as inference
from trunk_jax.inference.load import load as load_run
from trunk_jax.machine import backend

__all__ = ["Answer", "Model", "grow", "load"]


class Model(inference.Model):
    """A finished tree with its networks in JAX: what `load` and `grow` give."""

    def export(
        self,
        *,
        format: str,  # noqa: A002 (as the command calls it)
        out: str | Path,
        per_node: bool = False,
        int8: bool = False,
        push: str | None = None,
        data_dir: str | None = None,
    ) -> dict[str, Any]:
        """Write the run that this is of for other programs, as `python -m trunk_jax.export` does.

        Args:
          format: `onnx`, `stablehlo`, `hub` or `folder`.
          out: the file (onnx) or folder to make.
          per_node: onnx: a folder with a file a node, and tree.json.
          int8: onnx: int8 convolutions, calibrated on training images.
          push: hub: send it there as well, as ORG/NAME.
          data_dir: folder of prepared TFDS datasets; None: the run's own.

        Returns:
          What was found, as the command's `--json` has it, such as `bytes` and, of onnx, how many
          test `images` were tried and how many are `right`.

        Raises:
          UserError: `out` exists, a package is missing, what would be written decides otherwise
            than this does, and all else that a user can put right; it is a ValueError.

        Example (with `model = trunk_jax.load("cifar10")`):
          >>> import tempfile
          >>> with tempfile.TemporaryDirectory() as folder:
          ...     found = model.export(format="stablehlo", out=f"{folder}/program")
          >>> found["bytes"] > 1e6
          True

        """
        from trunk_jax.export import export

        if self.folder is None:
            raise UserError("this model is in no run folder; take one that load or grow gave")
        return export(
            self.folder,
            Path(out),
            kind=format,
            per_node=per_node,
            int8=int8,
            push=push,
            data_dir=data_dir,
        )[0]


def load(run: str | Path) -> Model:
    """A finished tree, of either framework, with its networks in JAX.

    Args:
      run: a run folder, or the name of a tree that comes with this software: `cifar10`, `emnist` or
        `svhn`, or `hub:ORG/NAME` on the Hugging Face Hub. A folder called cifar10 is `./cifar10`.

    Raises:
      UserError: it is no finished run, a file of it is damaged, or a variable of the environment
        lets JAX do nothing here; it is a ValueError.

    Example:
      >>> import trunk_jax
      >>> model = trunk_jax.load("cifar10")
      >>> print(model)
      <CIFAR-10, efficient resnet: 10 classes, 3 nodes>
      root ─ {airplane bird cat deer dog frog horse ship} │ {automobile truck}
      ├─ sg1 ─ airplane │ bird │ cat │ deer │ dog │ frog │ horse │ ship
      └─ sg3 ─ automobile │ truck

    """
    folder = run_of(run)
    backend.need_working()
    found = load_run(folder)
    return Model(found.recipe, found.tree, found.networks, found.folder, found.stopping)


def grow(
    *,
    images: Any = None,
    labels: Any = None,
    classes: Sequence[str] | None = None,
    test_images: Any = None,
    test_labels: Any = None,
    init: Model | str | Path | None = None,
    on_epoch: Callable[[dict[str, Any]], None] | None = None,
    **flags: Any,
) -> Model:
    """Grow and train a tree as `python -m trunk_jax.train` does, and return it.

    Progress is shown on standard error.

    Args:
      images: your own images, in place of `dataset`: uint8, or floats 0 to 1; [n, h, w] or
        [n, h, w, c] with 1 or 3 channels. For a folder of images give `dataset=FOLDER`.
      labels: whole numbers 0 to classes - 1, [n].
      classes: their names; None: the numbers.
      test_images, test_labels: the test split; None: a fixed, stratified fifth of the images.
      init: a finished tree to start from, as a model that `load` or `grow` gave or as its run
        folder: its tree is kept, and its weights are trained further.
      on_epoch: called after every epoch with its numbers, the row that `metrics.jsonl` gets:
        `node`, `phase`, `epoch`, `lr`, `train_loss`, `train_accuracy`, `validation_loss`,
        `validation_accuracy` and `seconds`.
      flags: the command's, by name, such as `dataset="digits"`, `recipe="efficient"`,
        `out="runs/x"`, `epochs=3`, `resume=True`: `python -m trunk_jax.train --help`
        explains them. None stands for a flag that is not given.

    Raises:
      UserError: a flag makes no sense, the folder exists, and all else that a user can put right;
        it is a ValueError.

    Example:
      >>> import tempfile, trunk_jax
      >>> losses = []
      >>> with tempfile.TemporaryDirectory() as folder:
      ...     model = trunk_jax.grow(
      ...         dataset="digits", limit=64, epochs=1, batch_size=32, out=f"{folder}/run",
      ...         on_epoch=lambda row: losses.append(row["train_loss"]),
      ...     )
      >>> len(model.classes), losses[0] > 0
      (10, True)

    """
    from data.run.options import train_options
    from trunk_jax.train import carry_out

    if isinstance(init, inference.Model):
        if init.folder is None:
            raise UserError("init is a model that is in no run folder; take one that load gave")
        init = init.folder
    data = None
    if images is not None:
        from data.images.datasets import of_arrays

        data = of_arrays(images, labels, classes, test_images=test_images, test_labels=test_labels)
    elif any(given is not None for given in (labels, classes, test_images, test_labels)):
        raise UserError("labels, classes and test images go with images; give images as well")
    options = train_options("jax", arguments_of(flags | {"init": init}), data)
    return carry_out(options, on_epoch=on_epoch, show=False, then=load)
