"""Features of a frozen vision tower, computed once for every image.

The tower sees one image (of the tiled families: one tile) at a time, whatever batch it stands in,
so that a feature does not depend on when it was computed, and a resumed run continues exactly.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import torch
import xxhash
from torch import Tensor, nn
from torch.autograd import forward_ad
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.nn.modules.batchnorm import _BatchNorm
from torch.utils._pytree import tree_leaves, tree_map

from dreamprm.models.families import Family

log = logging.getLogger("dreamprm")

ATTENTION = [  # what torch chooses from by itself
    SDPBackend.CUDNN_ATTENTION,
    SDPBackend.FLASH_ATTENTION,
    SDPBackend.EFFICIENT_ATTENTION,
    SDPBackend.MATH,
]


class FeatureCache:
    """Features in host memory, by the content of their image.

    What no longer fits is not kept: of images that come round once an epoch, those that are kept
    are then found every time, where dropping the oldest would find none.

    Args:
        max_bytes: of all features together.

    Attributes:
        computed: how often the tower ran.
    """

    def __init__(self, max_bytes: int) -> None:
        self.max_bytes = max_bytes
        self.bytes = self.computed = 0
        self._features: dict[bytes, Any] = {}
        self._weights: list[tuple[Tensor, int, int]] = []

    def __deepcopy__(self, memo: Any) -> FeatureCache:
        return FeatureCache(self.max_bytes)  # of a tower that may be changed on its own

    def valid_for(self, weights: Sequence[Tensor]) -> None:
        """Drops everything where it was computed with other weights.

        That is: with other tensors, which are held so that none can take another's address, or
        with these before they were written to or moved. What ``.data`` is written to in place is
        not seen, as autograd does not see it.
        """
        now = [(weight, weight._version, weight.data_ptr()) for weight in weights]
        same = len(now) == len(self._weights) and all(
            a is b and rest == others
            for (a, *rest), (b, *others) in zip(now, self._weights, strict=True)
        )
        if not same:
            self._features.clear()
            self.bytes, self._weights = 0, now

    def get(self, key: bytes, compute: Callable[[], Any]) -> Any:
        """What the tower gives for one image: tensors in a tree."""
        if key in self._features:
            return self._features[key]
        self.computed += 1
        features = compute()
        size = sum(tensor.nbytes for tensor in tree_leaves(features))
        if self.bytes + size <= self.max_bytes:
            self._features[key] = tree_map(_to_host, features)
            self.bytes += size
        return features


def cache_features(backbone: Any, family: Family, max_bytes: int) -> FeatureCache | None:
    """Makes the vision tower of a backbone run once for every image, as long as it is frozen.

    Where its weights change it starts anew; where they are trained it runs every time.

    Args:
        backbone: a Hugging Face model.
        family: of it.
        max_bytes: of host memory for the features; those beyond are computed every time.

    Returns:
        the cache; None for a tower with dropout or batch norms, whose features differ from pass
        to pass.
    """
    tower = backbone.get_submodule(family.tower)
    rates = [m.p for m in tower.modules() if isinstance(m, nn.Dropout)]
    settings = backbone.config.vision_config.to_dict()
    rates += [rate for name, rate in settings.items() if "dropout" in name]
    if any(rates) or any(isinstance(m, _BatchNorm) for m in tower.modules()):
        log.warning("the vision tower has dropout or batch norms: its features are not cached")
        return None
    cache = FeatureCache(max_bytes)
    # A partial, and not a closure, so that a deep copy of the tower is of that copy.
    tower.forward = partial(_cached, tower, family, backbone.config, cache)
    return cache


def _cached(
    tower: Any, family: Family, config: Any, cache: FeatureCache, *images: Any, **options: Any
) -> Any:
    """The forward call of the tower, which takes the images first, whatever that is called."""
    run = type(tower).forward
    # Buffers are constants of the positions, and lent as copies to every hypergradient.
    weights = list(tower.parameters())
    if any(map(_may_change, weights)):
        return run(tower, *images, **options)
    cache.valid_for(weights)
    pixels = images[0] if images else options.pop("pixel_values")
    # Qwen-VL puts the patches of all images behind each other and says how many an image has.
    grid = options.get("grid_thw")
    counts = [1] * len(pixels) if grid is None else grid.prod(-1).tolist()
    host = pixels.detach().cpu().split(counts)
    shared = [(n, v) for n, v in options.items() if not isinstance(v, Tensor)]
    kind = pixels.device.type
    precision = torch.is_autocast_enabled(kind) and torch.get_autocast_dtype(kind)
    about = repr((shared, precision, pixels.dtype)).encode()
    found = []
    for i, image in enumerate(pixels.split(counts)):
        own = {n: v[i : i + 1] if isinstance(v, Tensor) else v for n, v in options.items()}
        key = xxhash.xxh3_128(about)
        for tensor in (host[i], *(v.cpu() for v in own.values() if isinstance(v, Tensor))):
            key.update(repr(tuple(tensor.shape)).encode())
            key.update(tensor.contiguous().view(torch.uint8).numpy())

        def compute(image: Tensor = image, own: dict[str, Any] = own) -> Any:
            # What inference mode makes could not be trained on later; and the hypergradient's
            # choice of attention is none for the tower.
            with torch.inference_mode(False), torch.no_grad(), sdpa_kernel(ATTENTION):
                return _read(run(tower, image.clone(), **own), family, config)

        features = cache.get(key.digest(), compute)
        found.append(tree_map(lambda tensor: tensor.to(pixels.device), features))
    return tree_map(lambda *parts: torch.cat(parts), *found)


def _may_change(weight: Tensor) -> bool:
    """Whether it is trained, has a tangent, or keeps no count of what is written to it."""
    return (
        weight.requires_grad
        or weight.is_inference()
        or forward_ad.unpack_dual(weight).tangent is not None
    )


def _read(output: Any, family: Family, config: Any) -> Any:
    """The tower's output without what the backbone does not read of it."""
    features = {name: output[name] for name in family.features(config)}
    if "hidden_states" in features:
        layers = config.vision_feature_layer
        layers = [layers] if isinstance(layers, int) else layers
        states = features["hidden_states"]
        kept = {layer % len(states) for layer in layers}
        nothing = states[layers[0]][:, :0]
        features["hidden_states"] = tuple(
            state if n in kept else nothing for n, state in enumerate(states)
        )
    return type(output)(**features)


def _to_host(tensor: Tensor) -> Tensor:
    """A copy that holds nothing but itself, and that can be trained on."""
    with torch.inference_mode(False):
        return tensor.to("cpu", copy=True)
