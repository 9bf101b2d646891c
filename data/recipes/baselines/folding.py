"""ResNet's state_dict for training in another form: names for torch.ao's, or batch norm folded."""

import re
from collections.abc import Mapping

import numpy as np

Weights = dict[str, np.ndarray]
EPS = 1e-5  # of batch norm


def fused_names(weights: Mapping[str, np.ndarray]) -> Weights:
    """A float ResNet's tensors under the names they have once convolution and norm are fused."""

    def name(key: str) -> str:
        key = re.sub(r"\bbn(\d)\.", r"conv\1.bn.", key)
        return re.sub(r"\bdownsample\.1\.", "downsample.0.bn.", key)

    return {name(key): value for key, value in weights.items()}


def quantised_start(weights: Mapping[str, np.ndarray], fresh: Mapping[str, np.ndarray]) -> Weights:
    """A float ResNet's weights, and the untouched observers of `fresh`, a quantised one's."""
    return dict(fresh) | fused_names(weights)


def folded(weights: Mapping[str, np.ndarray]) -> Weights:
    """A float ResNet's tensors, every batch norm but the blocks' last in its convolution."""
    result = dict(weights)
    for key in weights:
        pair = re.fullmatch(r"(.*?)(bn[12]|downsample\.1)\.running_var", key)
        if not pair:
            continue
        at, norm = pair[1], pair[2]
        conv = at + ("downsample.0" if norm == "downsample.1" else norm.replace("bn", "conv"))
        gamma, beta, mean, var = (
            result.pop(f"{at}{norm}.{leaf}").astype(np.float64)
            for leaf in ("weight", "bias", "running_mean", "running_var")
        )
        result.pop(f"{at}{norm}.num_batches_tracked", None)
        gain = gamma / np.sqrt(var + EPS)
        kernel = weights[f"{conv}.weight"]
        result[f"{conv}.weight"] = (kernel * gain[:, None, None, None]).astype(kernel.dtype)
        result[f"{conv}.bias"] = (beta - mean * gain).astype(kernel.dtype)
    return result
