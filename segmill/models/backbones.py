"""Backbones by name: every convolutional or hierarchical encoder of timm, and smp's own."""

from __future__ import annotations

from segmill.errors import InputError, near_miss

IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)
HALF = (0.5, 0.5, 0.5)
# timm's modules of transformers whose features all have one scale, and of those with shifted windows.
PLAIN_VITS = ("vision_transformer", "deit", "eva")
SHIFTED_WINDOWS = ("swin_transformer", "swin_transformer_v2", "swin_transformer_v2_cr")

# timm's own (also called legacy_xception) starts without padding, so that its features are not halves of one another.
PADDED_BY_SMP = ("xception",)


def encoder_name(backbone: str) -> str:
    """Return segmentation-models-pytorch's name for ``backbone``: ``tu-NAME`` for timm's, else its own.

    Raises InputError for an unknown name, with the nearest known one.
    """
    import timm
    from segmentation_models_pytorch.encoders import encoders as native

    if "." not in backbone and timm.is_model(backbone) and backbone not in PADDED_BY_SMP:
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
    """Return the options with which timm's transformers take images of any size; none for other encoders."""
    if _is_of(encoder, SHIFTED_WINDOWS):
        return {"strict_img_size": False}
    if is_plain_vit(encoder):
        return {"dynamic_img_size": True}
    return {}


def is_plain_vit(encoder: str) -> bool:
    """Whether ``encoder`` (smp's name) is a plain vision transformer: all its features have its patches' scale."""
    return _is_of(encoder, PLAIN_VITS)


def own_side_px(encoder: str) -> int | None:
    """Return the side of the square images that ``encoder`` was made for, None where nothing says so."""
    import timm

    name = encoder.removeprefix("tu-")
    config = timm.models.get_pretrained_cfg(name) if encoder.startswith("tu-") else None
    return int(config.input_size[-1]) if config else None


def pretrained_normalisation(backbone: str) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Return the mean and std, per channel (RGB) of images scaled to 0..1, that published weights expect."""
    import timm

    config = timm.models.get_pretrained_cfg(backbone) if timm.is_model(backbone) else None
    if config:
        return tuple(config.mean), tuple(config.std)
    # segmentation-models-pytorch's own
    return (HALF, HALF) if backbone.startswith("inception") else (IMAGENET_MEAN, IMAGENET_STD)


def _is_of(encoder: str, modules: tuple[str, ...]) -> bool:
    import timm

    return encoder.startswith("tu-") and bool(timm.models.is_model_in_modules(encoder.removeprefix("tu-"), modules))
