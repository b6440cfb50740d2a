"""The networks of timm, with weights from files alone."""

from __future__ import annotations

import difflib
from pathlib import Path
from typing import TYPE_CHECKING

from chexgenbench import FINDINGS, UserError
from chexgenbench_plugins.weights import refuse_pickles, weight_folder

if TYPE_CHECKING:
    import torch


def check_backbone(name: str) -> None:
    """Raises `UserError` where timm has no network of that name."""
    import timm

    if not timm.is_model(name):
        close = difflib.get_close_matches(name, timm.list_models(), n=3)
        raise UserError(
            f"timm has no network named {name!r}.",
            hint=f"Did you mean {' or '.join(close)}?" if close else "See timm.list_models().",
        )


def weight_file(source: str | None, home: Path) -> Path | None:
    """The safetensors file of `source`: itself, in that folder, or in the hub's cache.

    Raises:
        UserError: it is not there, or is a pickle.
    """
    if source is None:
        return None
    path = (home / Path(source).expanduser()).resolve()
    if not path.is_file():
        folder = weight_folder(source, revision=None, home=home, what="classification")
        path = folder / "model.safetensors"
    if path.suffix == ".safetensors" and path.is_file():
        return path
    refuse_pickles(path if path.is_file() else path.parent, "classification")
    raise UserError(f"The weights of 'classification' are no safetensors file: {path}.")


def build(backbone: str, weights: Path | None) -> torch.nn.Module:
    """A network from one grey channel to a logit for each of the 14 findings.

    Args:
        backbone: timm's name.
        weights: the backbone's, of three channels or one (timm sums the first layer over them);
            the classifier among them is left out. None: random weights from torch's generator.

    Raises:
        UserError: weights of another network.
    """
    import timm

    try:
        return timm.create_model(
            backbone,
            pretrained=weights is not None,
            pretrained_cfg_overlay=None if weights is None else {"file": str(weights)},
            in_chans=1,
            num_classes=len(FINDINGS),
        )
    except RuntimeError as error:
        if weights is None:
            raise
        raise UserError(
            f"The weights of 'classification' are not those of {backbone!r}: {weights}.",
            hint="Set backbone to the network that they belong to.",
        ) from error
