"""Backbones by name: every convolutional or hierarchical encoder of timm, and those smp has besides."""

from __future__ import annotations

from segmill.errors import InputError, near_miss

IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)


def encoder_name(backbone: str) -> str:
    """Return segmentation-models-pytorch's name for ``backbone``: ``tu-NAME`` for timm's, else its own.

    Raises InputError for an unknown name, with the nearest known one.
    """
    import timm
    from segmentation_models_pytorch.encoders import encoders as native

    if "." not in backbone and timm.is_model(backbone):
        return f"tu-{backbone}"
    if backbone in native and not backbone.startswith("timm-"):
        return backbone
    known = [*timm.list_models(), *(name for name in native if not name.startswith("timm-"))]
    architecture, dot, tag = backbone.partition(".")
    if dot and timm.is_model(architecture):
        raise InputError(
            f"backbone {backbone} holds a weights tag; write backbone: {architecture} and weights: timm:{tag}"
        )
    raise InputError(
        f"unknown backbone {backbone}{near_miss(backbone, known)} "
        "(allowed: the names of timm.list_models() and of segmentation-models-pytorch, for example resnet18)"
    )


def size_options(encoder: str) -> dict[str, bool]:
    """Return what timm's transformers must be told to take images of any size; nothing for other encoders."""
    if encoder.startswith("tu-swin"):
        return {"strict_img_size": False}
    if encoder.startswith(("tu-vit_", "tu-deit", "tu-eva", "tu-beit")):
        return {"dynamic_img_size": True}
    return {}


def pretrained_normalisation(backbone: str) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Return the mean and std, per channel of images scaled to 0..1, that published weights expect."""
    import timm

    config = timm.models.get_pretrained_cfg(backbone) if timm.is_model(backbone) else None
    return (tuple(config.mean), tuple(config.std)) if config else (IMAGENET_MEAN, IMAGENET_STD)
