"""The augmentation recipes that have a name, each version as it was when members were trained with it."""

from __future__ import annotations

from segmill.data.loading.policy import Recipe

# A preset by name and version: whoever changes what a preset draws adds a version and leaves the older ones.
# A recipe is a list of one-key mappings, transform -> its parameters, done in order. What an image lacks or
# has too much of after them (RandomScale) is cut or padded at a random place, so no preset needs to know the
# size. What moves pixels comes first, RandomScale last of it: then only the pixels that stay are worked on.
PRESETS: dict[str, dict[int, Recipe]] = {
    "none": {1: []},
    # Scans: either side, slightly other pose and anatomy, other scanner. Noise is the same in all channels:
    # grey stays grey.
    "medical": {1: [
        {"HorizontalFlip": {"p": 0.5}},
        {
            "Affine": {
                "scale": [0.85, 1.15],
                "rotate": [-12, 12],
                "shear": [-4, 4],
                "translate_percent": [-0.05, 0.05],
                "p": 0.8,
            }
        },
        {"ElasticTransform": {"alpha": 60, "sigma": 8, "p": 0.2}},
        {"RandomBrightnessContrast": {"brightness_limit": 0.08, "contrast_limit": 0.12, "p": 0.6}},
        {"RandomGamma": {"gamma_limit": [75, 135], "p": 0.4}},
        {"GaussNoise": {"std_range": [0.005, 0.03], "per_channel": False, "p": 0.25}},
        {"GaussianBlur": {"blur_limit": [3, 5], "p": 0.1}},
    ]},
    # Camera on a vehicle: objects at every distance, all weathers; never upside down. From half to twice the size, as
    # in version 1, needs hundreds of epochs; in tens, less variety trains better (docs/log.md).
    "driving": {version: [
        {"HorizontalFlip": {"p": 0.5}},
        {"RandomScale": {"scale_limit": scale_limit, "p": 1.0}},
        {"ColorJitter": {"brightness": [0.6, 1.4], "contrast": [0.7, 1.3], "saturation": [0.6, 1.4],
                         "hue": [-0.05, 0.05], "p": 0.7}},
        {"GaussianBlur": {"blur_limit": [3, 5], "p": 0.15}},
        {"GaussNoise": {"std_range": [0.005, 0.03], "noise_scale_factor": 0.5, "p": 0.1}},
    ] for version, scale_limit in ((1, [-0.5, 1.0]), (2, [-0.3, 0.6]))},
    # Fixed camera: poor light, compression, low resolution, infra-red (grey) at night.
    "surveillance": {1: [
        {"HorizontalFlip": {"p": 0.5}},
        {"Affine": {"rotate": [-4, 4], "shear": [-3, 3], "p": 0.4}},
        {"RandomScale": {"scale_limit": [-0.3, 0.5], "p": 0.8}},
        {"RandomBrightnessContrast": {"brightness_limit": 0.3, "contrast_limit": 0.3, "p": 0.6}},
        {"RandomGamma": {"gamma_limit": [60, 160], "p": 0.4}},
        {"OneOf": {"transforms": [
            {"MotionBlur": {"blur_limit": [3, 7]}},
            {"Downscale": {"scale_range": [0.5, 0.9]}},
            {"ImageCompression": {"quality_range": [35, 90]}},
            {"GaussNoise": {"std_range": [0.01, 0.06]}},
        ], "p": 0.4}},
        {"ToGray": {"p": 0.1}},
    ]},
}  # fmt: skip
