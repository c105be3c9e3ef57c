"""params.yaml as typed values: a sentence per key, and unknown keys are errors that name the near miss."""

from __future__ import annotations

from collections.abc import Collection, Iterator
from dataclasses import asdict, fields
from functools import cache
from pathlib import Path
from typing import Annotated, Any, Literal, get_args

from pydantic import BaseModel, ConfigDict, Discriminator, Field, Tag, TypeAdapter, ValidationError, model_validator
from pydantic_core import ErrorDetails

from segmill.errors import InputError, near_miss
from segmill.keep_params import KeepParams
from segmill.notify_params import NotifyParams
from segmill.params_block import Block, Fraction
from segmill.params_text import text_and_values
from segmill.passwords import without_passwords
from segmill.promotion_params import GuardParams as GuardParams
from segmill.promotion_params import PromotionParams as PromotionParams
from segmill.ray_params import RayParams as RayParams
from segmill.renamed_keys import name_now
from segmill.schedule_params import ScheduleParams
from segmill.serving_params import ServingParams
from segmill.svm_settings import SvmSettings
from segmill.train_settings import NetworkSettings, TrainSettings

NonNegative = Annotated[int, Field(ge=0)]
MemberName = Annotated[str, Field(pattern=r"^[a-z0-9][a-z0-9_-]*$")]
HeadName = Literal["presence", "boundary", "distance"]


# dvc/stage/cache.py leaves these out of the run-cache's key wherever they stand, in params too (seen with DVC 3.67).
UNTRACKED_KEYS = ("size", "nfiles")


class DataParams(Block):
    path: str = Field("data/raw", description="Folder of the labelled set, in the canonical layout, tracked by DVC.")
    remote: str = Field(".dvc-remote", description="Where versions are pushed: a folder, or s3://bucket/prefix.")
    accept: tuple[str, ...] = Field(
        (), description=("Kinds of issues that are known and accepted, by the names that `segmill validate` prints.")
    )


class SplitParams(Block):
    val: Fraction = Field(0.15, description="Share of the groups in val, the split that selects weights and epochs.")
    test: Fraction = Field(
        0.15, description=("Share of the groups in test, the split that is used for the final evaluation only.")
    )
    seed: int = Field(0, description="Seed of the assignment of groups to splits.")
    sealed: tuple[str, ...] = Field(
        (),
        description=(
            "Groups of test on which the gate judges, and of which only its decision is shown; new ones go to test."
        ),
    )
    calibration: tuple[str, ...] = Field(
        (),
        description=(
            "Groups that are in no split and only calibrate the anomaly detector; none leaves the model without one."
        ),
    )

    @model_validator(mode="after")
    def leaves_something_to_train_on(self) -> SplitParams:
        if self.val + self.test >= 1:
            raise ValueError(
                f"val {self.val} and test {self.test} leave nothing to train on; their sum must be below 1"
            )
        return self


class AnomalyParams(Block):
    """What the anomaly detector of a version promises. It is made where ``split.calibration`` names groups."""

    rate: Fraction = Field(
        0.05, gt=0, description="Share of images like those of training that may be taken for anomalies."
    )
    by: str | None = Field(
        None, description="Column of the manifest (a camera, a site) whose values are calibrated apart; null is none."
    )
    abstain: bool = Field(False, description="Say `abstain: true` of an image whose p-value is at most rate.")


class PrepareParams(Block):
    size_px: tuple[Annotated[int, Field(ge=32)], Annotated[int, Field(ge=32)]] | None = Field(
        None, description=("Height and width of the training samples; null keeps each image's own size.")
    )
    resize: Literal["stretch", "fit", "tile"] = Field(
        "stretch",
        description=(
            "How images are brought to size_px: stretch; fit keeps the aspect ratio and pads with ignored "
            "pixels; tile cuts larger images into overlapping tiles at their own scale."
        ),
    )
    overlap_px: int = Field(32, ge=0, description="Overlap of neighbouring tiles.")
    border_crop_px: tuple[NonNegative, NonNegative, NonNegative, NonNegative] = Field(
        (0, 0, 0, 0),
        description=("Pixels cut off at top, bottom, left, right before resizing; training never sees them."),
    )
    grayscale: bool = Field(False, description="Convert images to grayscale, in training and in every prediction.")
    clahe: float = Field(
        0.0,
        ge=0,
        description=("Clip limit of adaptive histogram equalisation (CLAHE), in training and prediction; 0 is off."),
    )

    @model_validator(mode="after")
    def tiles_have_a_size(self) -> PrepareParams:
        if self.resize != "stretch" and self.size_px is None:
            raise ValueError(f"resize {self.resize} needs size_px; write a height and a width")
        if self.resize == "tile" and self.size_px and self.overlap_px >= min(self.size_px):
            raise ValueError(f"overlap_px {self.overlap_px} must be smaller than size_px {list(self.size_px)}")
        return self


class AugmentParams(Block):
    recipe: str | list[dict[str, Any]] = Field(
        "medical",
        description=(
            "A preset (medical, driving, surveillance, none; medical@1 fixes its version) or a list of "
            "albumentations transforms."
        ),
    )
    copy_paste: float = Field(
        0.0, ge=0, le=10, description="Extra samples with pasted objects of rare classes, as a share of train."
    )
    oversample: float = Field(
        0.0, ge=0, le=10, description="Extra copies of samples with rare classes, as a share of train."
    )
    rare_below: Fraction = Field(
        0.02, description="A class is rare if it has less than this share of train's labelled pixels."
    )
    seed: int = Field(0, description="Seed of the extra samples.")


class NetworkParams(Block):
    """A backbone with a decoder. Any key of ``train`` may stand here too, and wins for this member."""

    model_config = ConfigDict(extra="allow", frozen=True)

    kind: Literal["network"] = "network"
    backbone: str = Field(description="Encoder, by its name in timm or segmentation-models-pytorch.")
    decoder: str = Field(description="Decoder: fpn, unet, deeplabv3plus, ...")
    weights: str = Field(
        description=(
            "Initial weights of the encoder: timm, timm:TAG, smp, torchvision:ENUM.MEMBER, file:PATH, package:NAME or "
            "none."
        )
    )
    lr: float = Field(gt=0, description="Peak learning rate; a pretrained encoder has encoder_lr_factor times this.")
    decoder_width: float = Field(1.0, gt=0, le=4, description="Factor on the decoder's usual number of channels.")
    attention: Literal["none", "se", "scse", "cbam"] = Field(
        "none", description="Attention in the decoder: se, scse or cbam."
    )
    context: Literal["none", "nonlocal", "selfattention", "gru", "lstm"] = Field(
        "none",
        description=(
            "Global context at the deepest feature: nonlocal, selfattention, or gru and lstm over rows and columns."
        ),
    )
    aux_heads: dict[HeadName, Annotated[float, Field(gt=0)]] = Field(
        {}, description=("Auxiliary heads (presence, boundary, distance), each with the weight of its loss.")
    )
    head_weights: Literal["fixed", "learned"] = Field(
        "fixed", description="fixed, or learned from the uncertainty of each task."
    )
    keep_heads: bool = Field(
        False, description="Keep the auxiliary heads in the served model: predict with params {aux: true}."
    )
    deep_supervision: float = Field(0.0, ge=0, description="Weight of the losses at the decoder's coarser stages.")


class SvmParams(Block):
    """Colour, texture and spatial features with a linear SVM on a kernel approximation."""

    kind: Literal["svm"]
    features: tuple[Literal["colour", "texture", "spatial", "cnn"], ...] = Field(
        ("colour", "texture", "spatial"), min_length=1, description="Families of features; cnn needs a backbone."
    )
    backbone: str | None = Field(None, description="Frozen encoder of the cnn features.")
    weights: str = Field("none", description="Weights of that encoder, as for other members.")
    pixels: int = Field(
        200_000,
        ge=1_000,
        description=("Number of sampled training pixels; classes are sampled by the square root of their frequency."),
    )
    components: int = Field(500, ge=10, description="Dimensions of the approximated kernel map.")
    gamma: Annotated[float, Field(gt=0)] | Literal["auto"] = Field("auto", description="Gamma of the RBF kernel.")
    c: Annotated[float, Field(gt=0)] | None = Field(
        None, description="Regularisation parameter C; null selects it on held-out images."
    )
    seed: int = Field(0, description="Seed of the sampled pixels and the kernel map.")
    max_minutes: float | None = Field(
        None, gt=0, description="Time limit of the fit in minutes; a short one uses fewer pixels."
    )

    @model_validator(mode="after")
    def cnn_features_have_a_backbone(self) -> SvmParams:
        if ("cnn" in self.features) != (self.backbone is not None):
            raise ValueError("a backbone belongs to the features cnn; name both or neither")
        return self


def _kind(member: Any) -> str:
    kind = member.get("kind", "network") if isinstance(member, dict) else getattr(member, "kind", "network")
    return kind if kind in MEMBER_KINDS else "network"


MEMBER_KINDS: dict[str, type[Block]] = {"network": NetworkParams, "svm": SvmParams}
MemberParams = Annotated[
    Annotated[NetworkParams, Tag("network")] | Annotated[SvmParams, Tag("svm")], Discriminator(_kind)
]


class EnsembleParams(Block):
    tta_hflip: bool = Field(
        False,
        description=("Average each prediction with that of the horizontally flipped image (test-time augmentation)."),
    )
    min_members: int | None = Field(
        None,
        ge=1,
        description=(
            "Members that must be trained; where others fail after their retries, the ensemble is made without them. "
            "null: all."
        ),
    )


class EvaluateParams(Block):
    overlays: int = Field(
        9, ge=1, description="Test images shown in the report: the worst, the most typical and the best."
    )


class MlflowParams(Block):
    tracking_uri: str = Field(
        "sqlite:///mlflow.db", description="Database or server of MLflow. MLFLOW_TRACKING_URI wins."
    )


class PrefectParams(Block):
    api_url: str | None = Field(
        None, description=("API of a Prefect server; null starts one for the run. PREFECT_API_URL wins.")
    )


class GitParams(Block):
    commit: bool | None = Field(
        None, description="Commit settings and records after a run; null does in repositories that segmill init made."
    )


class Params(Block):
    """The whole of params.yaml. What DVC tracks must be there; what only says where things run has defaults."""

    data: DataParams
    split: SplitParams
    prepare: PrepareParams
    augment: AugmentParams
    train: TrainSettings
    members: dict[MemberName, MemberParams] = Field(min_length=1)
    ensemble: EnsembleParams
    evaluate: EvaluateParams
    anomaly: AnomalyParams = AnomalyParams()
    promotion: PromotionParams = PromotionParams()
    ray: RayParams = RayParams()
    mlflow: MlflowParams = MlflowParams()
    prefect: PrefectParams = PrefectParams()
    notify: NotifyParams = NotifyParams()
    keep: KeepParams = KeepParams()
    git: GitParams = GitParams()
    schedule: ScheduleParams = ScheduleParams()
    serving: ServingParams = ServingParams()

    def without_members(self, names: Collection[str]) -> Params:
        """Return the parameters of a run in which these members failed."""
        left = {name: member for name, member in self.members.items() if name not in names}
        return self.model_copy(update={"members": left})

    def training_of(self, name: str) -> TrainSettings:
        """Return the training settings with what the network member ``name`` says instead."""
        return _TRAIN.validate_python({**asdict(self.train), **(self.members[name].model_extra or {})})

    def network_of(self, name: str) -> NetworkSettings:
        """Return what the network member ``name`` says of itself."""
        return NetworkSettings(**{key.name: getattr(self.members[name], key.name) for key in fields(NetworkSettings)})

    def svm_of(self, name: str) -> SvmSettings:
        """Return what the classical member ``name`` says of itself."""
        return SvmSettings(**{key.name: getattr(self.members[name], key.name) for key in fields(SvmSettings)})

    def own_training_keys(self, name: str) -> tuple[str, ...]:
        """Return the keys of ``train`` that the network member ``name`` sets for itself."""
        return tuple(self.members[name].model_extra or {})


_TRAIN = TypeAdapter(TrainSettings)


def read_params(path: Path) -> Params:
    """Read params.yaml. InputError lists every fault at once, each with its key and what is allowed."""
    return read_params_and_text(path)[0]


def read_params_and_text(path: Path) -> tuple[Params, str]:
    """As ``read_params``, with the very text that the parameters were read from."""
    text, values = text_and_values(path)
    return parse_params(values, path.name), text


def parse_params(values: Any, source: str) -> Params:
    """Turn plain values into Params; ``source`` names them in the error."""
    if not isinstance(values, dict):
        raise InputError(f"{source} holds {type(values).__name__}, not blocks of keys; see the project's params.yaml")
    params, faults = check_values(values)
    if faults or params is None:
        raise InputError("\n".join(f"{source}: {fault}" for fault in faults))
    return params


def check_values(values: dict[str, Any]) -> tuple[Params | None, list[str]]:
    """Return the parameters, None where they can't be read, and a sentence for each fault."""
    untracked = [key for key in _all_keys(values) if key.rpartition(".")[2] in UNTRACKED_KEYS]
    if untracked:
        return None, [
            f"{', '.join(untracked)}: DVC's run-cache takes no notice of keys named size or nfiles and would "
            "give back a result made with other values; write size_px"
        ]
    params, faults = None, []
    try:
        params = Params.model_validate(values)
    except ValidationError as error:
        faults = [_sentence(fault, []) for fault in error.errors()]
    for name, own in _training_of_members(values):
        try:
            _TRAIN.validate_python(own)
        except ValidationError as error:
            faults += [_sentence(fault, ["members", name]) for fault in error.errors()]
    return params, faults


def _all_keys(values: Any, prefix: str = "") -> list[str]:
    if isinstance(values, list):
        return [key for item in values for key in _all_keys(item, prefix)]
    if not isinstance(values, dict):
        return []
    return [key for name, value in values.items() for key in (f"{prefix}{name}", *_all_keys(value, f"{prefix}{name}."))]


def _training_of_members(values: dict[str, Any]) -> Iterator[tuple[str, dict[str, Any]]]:
    """Yield each network member's name and those of its keys that are none of its own: they should be train's."""
    members = values.get("members")
    for name, member in members.items() if isinstance(members, dict) else ():
        if isinstance(member, dict) and _kind(member) == "network":
            own = {key: value for key, value in member.items() if key not in NetworkParams.model_fields}
            yield str(name), own


def _sentence(fault: ErrorDetails, parents: list[str]) -> str:
    """Say one of pydantic's faults, found in the block at ``parents``, as: key, what came, what is allowed."""
    location = parents + [str(part) for part in fault["loc"] if part != "[key]"]
    if len(location) > 2 and location[0] == "members" and location[2] in MEMBER_KINDS and not parents:
        del location[2]  # which kind of member pydantic took it for
    key = ".".join(location) or "the file"
    match fault["type"]:
        case "extra_forbidden" | "unexpected_keyword_argument":
            if new := name_now(key):
                return f"{key} is called {new} now; `segmill doctor --fix` renames it in params.yaml"
            allowed = list(_keys(location))
            measured = ": this version measures no other condition" if location[:2] == ["promotion", "guards"] else ""
            return f"unknown key {key}{near_miss(location[-1], allowed)} (allowed here: {', '.join(allowed)}{measured})"
        case "missing":
            return f"{key} is missing; add it ({_description(location)})"
        case "value_error":
            return f"{key}: {fault['ctx']['error']}"
        case "string_pattern_mismatch":
            return f"{key}: a member's name has small letters, digits, - and _ only"
    came = without_passwords(repr(fault["input"]))
    return f"{key} is {came}: {fault['msg'][0].lower()}{fault['msg'][1:]} ({_description(location)})"


def _keys(location: list[str]) -> dict[str, str | None]:
    """Return the keys of the block that holds the last part of ``location``, and what each is for."""
    if len(location) == 1:
        return _described(Params)
    if location[0] == "members":
        return {**_described(SvmParams), **train_keys(), **_described(NetworkParams)}
    if location[0] == "train":
        return train_keys()
    block: type[BaseModel] = Params
    for name in location[:-1]:
        if field := block.model_fields.get(name):  # an index in a list is no field
            kinds = (field.annotation, *get_args(field.annotation))
            block = next((kind for kind in kinds if isinstance(kind, type) and issubclass(kind, BaseModel)), block)
    return _described(block)


def _described(block: type[BaseModel]) -> dict[str, str | None]:
    return {key: field.description for key, field in block.model_fields.items()}


@cache
def train_keys() -> dict[str, str | None]:
    """Return the keys of ``train`` and what each is for: the text below its field in TrainSettings."""
    return {key: facts["description"] for key, facts in _TRAIN.json_schema()["properties"].items()}


def _description(location: list[str]) -> str:
    for depth in range(len(location), 0, -1):
        if said := _keys(location[:depth]).get(location[depth - 1]):
            return said
    return "see the project's params.yaml"
