"""The training recipes whose losses are recorded: each names what differs from the common keys."""

from __future__ import annotations

from typing import Any

SMALL = "mobilenetv3_small_050"
COMMON: dict[str, Any] = {
    "backbone": SMALL,
    "decoder": "fpn",
    "weights": "none",
    "lr": 0.003,
    "decoder_width": 0.25,
    "epochs": 2,
    "batch_size": 4,
    "seed": 3,
    "precision": "fp32",
    "warmup_epochs": 0.5,
}
# Weights for the recipes that begin with some: FILE stands for a file of random weights of SMALL's, which frozen stages
# need, and START for the folder of the member that the recipe "plain" trained.
FILE, START = "FILE", "START"

RECIPES: dict[str, dict[str, Any]] = {
    "plain": {},
    "ce": {"loss": {"ce": 1.0}},
    "focal with ohem": {"loss": {"focal": 1.0}, "focal_gamma": 1.5, "ohem": 0.5},
    "ce with ohem": {"loss": {"ce": 1.0}, "ohem": 0.25},
    "tversky": {"loss": {"tversky": 1.0}, "tversky_alpha": 0.4},
    "lovasz": {"loss": {"lovasz": 1.0}},
    "boundary": {"loss": {"dice": 1.0, "boundary": 0.1}},
    "class weights, root": {"loss": {"ce": 1.0}, "class_weights": "sqrt_inverse"},
    "class weights, inverse": {"loss": {"focal": 1.0}, "class_weights": "inverse"},
    "class weights, effective": {"loss": {"ce": 1.0}, "class_weights": "effective"},
    "nadam": {"optimizer": "nadam", "schedule": "constant", "weight_decay": 0.05},
    "sgd": {"optimizer": "sgd", "momentum": 0.8, "schedule": "poly", "lr": 0.02, "max_grad_norm": 0.5},
    "muon": {"optimizer": "muon", "lr": 0.01, "momentum": 0.95},
    "onecycle": {"schedule": "onecycle", "layer_decay": 0.7, "encoder_lr_factor": 0.5},
    "ema": {"ema_decay": 0.7, "epochs": 3},
    "accumulation": {"grad_accum_steps": 2, "batch_size": 2, "max_grad_norm": 1.0, "ema_decay": 0.5},
    "frozen encoder": {"weights": FILE, "freeze_epochs": 1, "unfreeze_epochs": 2, "epochs": 4},
    "warm start": {"weights": START, "epochs": 1},
    "early stopping": {"lr": 1e-7, "early_stopping_patience": 1, "epochs": 6},
    "few validation runs": {"val_every": 2, "epochs": 3},
    "crops": {"crop_size": [32, 48]},
    "gradient checkpointing": {
        "backbone": "resnet10t",
        "gradient_checkpointing": True,
        "decoder": "linknet",
        "decoder_width": 1.0,
    },
    "auxiliary heads": {"aux_heads": {"presence": 0.2, "boundary": 0.5, "distance": 0.3}},
    "learned weights": {
        "aux_heads": {"presence": 0.2, "distance": 0.3},
        "head_weights": "learned",
        "deep_supervision": 0.4,
    },
    "fcn": {"decoder": "fcn"},
    "unet with scse": {"decoder": "unet", "attention": "scse", "deep_supervision": 0.4},
    "unet with cbam and gru": {"decoder": "unet", "attention": "cbam", "context": "gru"},
    "unetplusplus": {"decoder": "unetplusplus"},
    "deeplabv3plus": {"decoder": "deeplabv3plus", "backbone": "resnet10t"},
    "pspnet": {"decoder": "pspnet"},
    "manet with selfattention": {"decoder": "manet", "context": "selfattention"},
    "upernet": {"decoder": "upernet"},
    "segformer": {"decoder": "segformer"},
    "fpn with se and nonlocal": {"attention": "se", "context": "nonlocal"},
    "fpn with lstm": {"context": "lstm", "lr": 0.02},
    "efficientnet": {"backbone": "tf_efficientnet_lite0", "decoder": "unet"},
}
SVM: dict[str, Any] = {"kind": "svm", "pixels": 2000, "components": 40, "seed": 1, "c": 1.0}
