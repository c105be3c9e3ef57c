"""segmill: the retraining pipeline for semantic segmentation. ``segmill.load`` loads a registered version, verified."""


def __getattr__(name: str) -> object:
    if name == "load":
        from importlib import import_module

        return import_module("segmill.promotion.loading").load
    raise AttributeError(f"module 'segmill' has no attribute {name!r}")
