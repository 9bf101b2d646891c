"""The monolithic baselines as things to train: recipes, architectures, where each starts from.

A trained baseline is a tree of one node, so that run folders, resuming and evaluation are a
tree's own.
"""

import hashlib
import tomllib
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from data.base.errors import UserError
from data.base.streams import stream
from data.base.weights import need_safetensors
from data.images import specs
from data.images.augmentation import Augmentation
from data.images.specs import Spec
from data.recipes import recipe
from data.recipes.baselines import folding, pretrained, pruning
from data.recipes.baselines.architectures import (
    ARCHITECTURES,
    Architecture,
    ConvNext,
    Dinov2,
    QuantResNet,
    ResNet,
    Vgg,
    Vit,
    smallest,
)
from data.recipes.recipe import Baseline, NodeRecipe, Phase, Recipe

# A model's name, and that of the architecture whose weights it starts from.
STARTS = {
    "resnet50": "resnet50",
    "resnet50_qat": "resnet50",
    "resnet50_observed": "resnet50",
    "vgg16": "vgg16",
    "vgg16_pruned": "vgg16",
    "vgg16_bn_pruned": "vgg16_bn_small",
    "convnext_base": "convnext_base",
    "mobilenet_v2": "mobilenet_v2",
    "vit_b_16": "vit_b_16",
    "dinov2_vitb14_reg": "dinov2_vitb14_reg",
    "deit_tiny": "deit_tiny",
}
MODELS = tuple(STARTS)
RECIPES = ("corrected", "published", "scratch")
PRUNED = ("vgg16_pruned", "vgg16_bn_pruned")
NO_WEIGHTS = "none"
_PUBLISHED = recipe.FOLDER / "baselines" / "published.toml"
_NORMALISED = {"mean": (0.4914, 0.4822, 0.4465), "std": (0.2023, 0.1994, 0.2010)}


def load(
    model: str,
    dataset: str,
    name: str = "corrected",
    *,
    size: int | None = None,
    weights: str | None = None,
    speed_up: float | None = None,
    data: Spec | None = None,
) -> Recipe:
    """The recipe of a model on a dataset.

    `published`: as the release trained it, from public weights. `corrected`: the same
    hyperparameters, selecting on held-out training images. `scratch`: from random weights, at
    the images' own size where the model can do it.

    Args:
      size: images are resized to size x size, 0 for their own (default: the recipe's).
      weights: a safetensors file to start from, or `none` (default: the recipe's).
      speed_up: how many times cheaper a pruned model is (default: 2).
      data: of a dataset that `specs` does not have, what is known of it.

    UserError for anything that there is not or that does not go together.

    """
    if model not in STARTS:
        raise UserError(f"no model {model!r}; the models: {', '.join(MODELS)}")
    if name not in RECIPES:
        raise UserError(f"no recipe {name!r} for a model; there are: {', '.join(RECIPES)}")
    if speed_up is not None and model not in PRUNED:
        raise UserError(f"--speed-up is for {' and '.join(PRUNED)}")
    released = model == "vgg16_bn_pruned"
    own = 0 if released and dataset in ("cifar10", "digits") else 224
    if name == "scratch" and not isinstance(ARCHITECTURES[STARTS[model]], Vit):
        own = 0
    settings = _scratch(dataset) if name == "scratch" else _fine_tuning(model, dataset, name)
    phase = settings.pop("phase")
    random = name == "scratch" or released
    baseline = Baseline(
        size=own if size is None else size,
        weights=_weights(model, (NO_WEIGHTS if random else None) if weights is None else weights),
        speed_up=(2.0 if speed_up is None else speed_up) if model in PRUNED else 1.0,
    )
    node = NodeRecipe(1.0, phase, phase)
    data = data or specs.spec(dataset)
    coloured: dict[str, Any] = {} if data.image_shape[2] == 1 else _NORMALISED
    chosen = Recipe(
        name=name,
        dataset=dataset,
        backbone=model,
        root=node,
        others=node,
        baseline=baseline,
        data=data,
        **coloured,
        **settings,
    )
    _check_size(chosen, asked=size is not None)
    return recipe.check(chosen)


def _fine_tuning(model: str, dataset: str, name: str) -> dict:
    known = tomllib.loads(_PUBLISHED.read_text("utf-8"))
    if model == "vgg16_bn_pruned":
        phase = Phase(100, "sgd", 0.01, 5e-4, schedule="step", milestones=(60, 80))
        batch = 128
    else:
        rows = known[model]
        if dataset not in rows:
            raise UserError(
                f"recipe {name!r} has none for {model} on {dataset}, but scratch has; it has: "
                f"{', '.join(rows)}"
            )
        lr, decay, epochs = rows[dataset]
        phase, batch = Phase(epochs, "adam", lr, decay, betas=(0.9, 0.99)), 16
    published = name == "published"
    faults = tuple(known["faults"].get(model, {}).get(dataset, ()))
    return {
        "phase": phase,
        "batch_size": batch,
        "eval_batch_size": batch,
        "protocol": "published" if published else "holdout",
        "ties": "final" if published else "last",
        "faults": faults if published else (),
    }


def _scratch(dataset: str) -> dict:
    phase = Phase(30, "sgd", 0.05, 5e-4, schedule="cosine")
    crop = Augmentation(crop_padding=4, flip=dataset == "cifar10")
    return {
        "phase": phase,
        "batch_size": 128,
        "eval_batch_size": 250,
        "augment": crop if dataset != "digits" else Augmentation(),
    }


def _weights(model: str, given: str | None) -> str:
    """The file to start from, and its SHA-256, as `config.json` keeps them; or `none`."""
    if given == NO_WEIGHTS:
        return NO_WEIGHTS
    file = Path(given) if given else pretrained.file_of(STARTS[model])
    if file.is_dir() and (file / "model.safetensors").exists():  # as the Hugging Face hub has it
        file = file / "model.safetensors"
    if not file.exists():
        pretrained.read(STARTS[model], file)  # says what is missing
    need_safetensors(file)
    with open(file, "rb") as content:
        digest = hashlib.file_digest(content, "sha256").hexdigest()
    return f"{file.absolute()}#{digest}"


class WrongSize(UserError):
    """A model cannot take images of the size that it would be given."""


def _check_size(chosen: Recipe, asked: bool) -> None:
    """WrongSize if the model cannot take its size, which the user `asked` for or the recipe has."""
    spec, size = base_of(chosen), baseline_of(chosen).size
    least, own = smallest(spec), min(chosen.spec.image_shape[:2])
    if size < 0:
        raise WrongSize(f"--size {size} must be above 0, or 0 for images as they are")
    good, wanted = (size or own) >= least, f"{least} or more"
    if isinstance(spec, Dinov2):
        good, wanted = size > 0 and size % spec.patch == 0, f"a multiple of {spec.patch}"
    elif isinstance(spec, Vit):
        good, wanted = size == spec.image, f"{spec.image}"
    if good:
        return
    given = f"--size {size}: " if asked else ""
    if size == 0:
        wanted += f" pixels, and {chosen.dataset} has {own}; choose --size {least}"
    raise WrongSize(f"{given}{chosen.backbone} takes {wanted}")


def baseline_of(chosen: Recipe) -> Baseline:
    """What the recipe of a baseline says of it."""
    assert chosen.baseline is not None, "not the recipe of a baseline"
    return chosen.baseline


def base_of(chosen: Recipe) -> Architecture:
    """The architecture whose weights the recipe's model starts from."""
    spec = ARCHITECTURES[STARTS[chosen.backbone]]
    if isinstance(spec, Dinov2) and "no_head" in chosen.faults:
        return replace(spec, head=False)
    if isinstance(spec, ConvNext) and "no_stem_norm" in chosen.faults:
        return replace(spec, stem_norm=False)
    return spec


def spec_of(chosen: Recipe, side: int) -> Architecture:
    """The architecture of the recipe's model, for stored images of this side."""
    spec, about = base_of(chosen), baseline_of(chosen)
    if isinstance(spec, ResNet):
        if chosen.backbone == "resnet50_qat":
            return QuantResNet(spec.blocks, spec.width)
        if chosen.backbone == "resnet50_observed":
            return replace(spec, folded=True)
    if isinstance(spec, Vgg) and chosen.backbone in PRUNED:
        return pruning.narrowed(spec, about.speed_up, about.size or side)
    return spec


Shapes = Callable[[Architecture], Mapping[str, tuple[int, ...]]]
Fresh = Callable[[Architecture], dict[str, np.ndarray]]


def start(chosen: Recipe, side: int, shapes: Shapes, fresh: Fresh) -> dict[str, np.ndarray]:
    """The state_dict that training starts from.

    Args:
      chosen: the recipe.
      side: of the stored images.
      shapes: of the tensors of an architecture, for the dataset's channels and classes.
      fresh: random weights of an architecture, likewise.

    """
    base, spec, source = base_of(chosen), spec_of(chosen, side), baseline_of(chosen).weights
    if source == NO_WEIGHTS:
        if base == spec:
            return fresh(spec)
        weights = fresh(base)
    else:
        file = Path(source.rpartition("#")[0])
        public = pretrained.read(STARTS[chosen.backbone], file)
        rng = stream(chosen.seed, "root", "class", "new layers")
        weights = pretrained.adapt(public, shapes(base), base, rng)
    if isinstance(spec, QuantResNet):
        return folding.quantised_start(weights, fresh(spec))
    if isinstance(spec, ResNet) and spec.folded:
        return folding.folded(weights)
    if isinstance(base, Vgg) and isinstance(spec, Vgg) and spec != base:
        return pruning.prune(weights, base, spec)
    return weights
