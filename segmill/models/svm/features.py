"""Features of each pixel for the classical member, by family: colour, texture, spatial, cnn."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NamedTuple

import cv2
import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional as F

from segmill.errors import InputError
from segmill.models.backbones import encoder_name, size_options
from segmill.models.weights import Weights, load_into

Map = NDArray[np.float32]

SIGMAS_PX = (1.0, 2.0, 4.0, 8.0)
WINDOWS_PX = (5, 11, 23, 47)
# Of a backbone: strides 2 to 16. Deeper features describe the image, not the pixel.
CNN_DEPTH = 4
CNN_STRIDE_PX = 32
CNN_CHANNELS = 12  # kept of each of its stages


class Views(NamedTuple):
    """An image in the colour spaces that families start from: HWC float32, RGB and HSV in 0..1 (hue 0..360), Lab."""

    rgb_HWC: Map
    hsv_HWC: Map
    lab_HWC: Map


def colour(views: Views) -> list[Map]:
    """9 channels: R, G, B; saturation times cosine and sine of the hue, value; L, a, b of CIELAB."""
    hue, saturation, value = cv2.split(views.hsv_HWC)
    x, y = cv2.polarToCart(saturation, hue, angleInDegrees=True)
    return [*cv2.split(views.rgb_HWC), x, y, value, *cv2.split(views.lab_HWC)]


def texture(views: Views) -> list[Map]:
    """36 channels, of the lightness where nothing else is said.

    At each of four scales (SIGMAS_PX) the length of the gradient, the eigenvalues of the Hessian (Frangi et al. 1998)
    and the roots of the eigenvalues of the structure tensor over twice the scale (Förstner & Gülch 1987), derivatives
    normalised by their scale (Lindeberg 1998); in each of four windows (WINDOWS_PX) mean and standard deviation and
    the means of a and b.
    """
    lightness, a, b = (plane / np.float32(100) for plane in cv2.split(views.lab_HWC))
    maps: list[Map] = []
    for sigma in SIGMAS_PX:
        maps += _derivatives(lightness, sigma)
    for window in WINDOWS_PX:
        mean = _mean(lightness, window)
        variance = _mean(lightness * lightness, window) - mean * mean
        maps += [mean, np.sqrt(np.maximum(variance, 0)), _mean(a, window), _mean(b, window)]
    return maps


def spatial(views: Views) -> list[Map]:
    """3 channels: x and y, -1 to 1 over the image, and the distance to its centre in these units."""
    height, width = views.rgb_HWC.shape[:2]
    x = np.linspace(-1, 1, width, dtype=np.float32) if width > 1 else np.zeros(1, np.float32)
    y = np.linspace(-1, 1, height, dtype=np.float32) if height > 1 else np.zeros(1, np.float32)
    x_HW, y_HW = np.broadcast_to(x, (height, width)), np.broadcast_to(y[:, None], (height, width))
    return [x_HW, y_HW, np.hypot(x_HW, y_HW)]


DRAWN: dict[str, Callable[[Views], list[Map]]] = {"colour": colour, "texture": texture, "spatial": spatial}
FAMILIES = (*DRAWN, "cnn")


class FrozenBackbone(nn.Module):
    """The family cnn: the stages of a pretrained encoder, each turned to its principal components, at full size.

    A stage's ``projection`` is linear, so it commutes with the bilinear interpolation after it: the wide maps are
    never brought to full size. It is random until ``fit_projections``. At most CNN_CHANNELS channels per stage of
    stride 2 to 16.
    """

    def __init__(self, backbone: str, mean: Sequence[float], std: Sequence[float]) -> None:
        """Build it with random weights; InputError for an unknown name or one without such stages."""
        super().__init__()
        import segmentation_models_pytorch as smp

        name = encoder_name(backbone)
        try:
            self.encoder: nn.Module = smp.encoders.get_encoder(
                name, in_channels=3, depth=CNN_DEPTH, weights=None, **size_options(name)
            )
        except (ValueError, TypeError, KeyError, AttributeError, RuntimeError) as reason:
            raise InputError(
                f"backbone {backbone} gives no stages of features ({str(reason).splitlines()[0]}); choose a "
                "convolutional one, for example resnet18"
            ) from reason
        shape = (1, 3, 1, 1)
        self.mean: Tensor
        self.scale: Tensor
        self.register_buffer("mean", 255 * torch.tensor(mean).view(shape), persistent=False)
        self.register_buffer("scale", 1 / (255 * torch.tensor(std).view(shape)), persistent=False)
        self.eval().requires_grad_(False)
        widths = [stage.shape[1] for stage in self.stages(np.zeros((64, 64, 3), np.uint8))]
        self.projections = nn.ModuleList(nn.Conv2d(width, min(width, CNN_CHANNELS), 1) for width in widths)
        self.requires_grad_(False)

    @property
    def channels(self) -> int:
        return sum(projection.out_channels for projection in self.projections)  # type: ignore[misc]

    def load_pretrained(self, weights: Weights) -> None:
        """Copy ``weights`` into the encoder; InputError where they do not fit it."""
        load_into(self.encoder, weights)

    def stages(self, image_HWC: NDArray[np.uint8]) -> list[Tensor]:
        """Return its maps from fine to coarse, 1CHW float32, of the image padded to a multiple of CNN_STRIDE_PX."""
        height, width = image_HWC.shape[:2]
        image = torch.tensor(image_HWC).to(self.mean.device)
        image_BCHW = (image[None].permute(0, 3, 1, 2).float() - self.mean) * self.scale
        image_BCHW = F.pad(image_BCHW, (0, -width % CNN_STRIDE_PX, 0, -height % CNN_STRIDE_PX), mode="replicate")
        features: list[Tensor] = self.encoder(image_BCHW)
        return [feature for feature in features[1:] if feature.shape[1]]

    def fit_projections(self, images: Sequence[NDArray[np.uint8]]) -> None:
        """Set each stage's projection to the first principal components over ``images``, of unit variance at most.

        Source: Pearson 1901; the eigenvectors of the stage's covariance.
        """
        sums = [(0.0, torch.zeros(1), torch.zeros(1))] * len(self.projections)
        for image_HWC in images:
            for number, stage in enumerate(self.stages(image_HWC)):
                points_PC = stage[0].flatten(1).T.double()
                count, first, second = sums[number]
                sums[number] = (
                    count + len(points_PC), first + points_PC.sum(0), second + points_PC.T @ points_PC
                )  # fmt: skip
        for (count, first, second), projection in zip(sums, self.projections, strict=True):
            mean = first / count
            _, vectors = torch.linalg.eigh(second / count - torch.outer(mean, mean))
            kept = vectors.flip(1)[:, : projection.out_channels].T
            # The sign of an eigenvector is arbitrary.
            kept = kept * kept.gather(1, kept.abs().argmax(1, keepdim=True)).sign()
            projection.weight.copy_(kept[:, :, None, None])  # type: ignore[operator]
            projection.bias.copy_(-kept @ mean)  # type: ignore[operator]

    def forward(self, image_HWC: NDArray[np.uint8]) -> list[Map]:
        """Return ``channels`` maps HW float32."""
        height, width = image_HWC.shape[:2]
        padded = (height + -height % CNN_STRIDE_PX, width + -width % CNN_STRIDE_PX)
        maps: list[Map] = []
        for projection, stage in zip(self.projections, self.stages(image_HWC), strict=True):
            whole = F.interpolate(projection(stage), padded, mode="bilinear", align_corners=False)
            maps += list(whole[0, :, :height, :width].cpu().numpy())
        return maps


def pixel_features(
    image_HWC: NDArray[np.uint8], channels: dict[str, tuple[int, ...]], cnn: FrozenBackbone | None = None
) -> NDArray[np.float32]:
    """Return the features of each pixel of an image.

    Args:
        image_HWC: uint8 RGB of any size.
        channels: family to the numbers of those of its channels that are wanted, each from 0.
        cnn: the frozen backbone, where ``channels`` holds the family cnn.

    Returns:
        features_CHW float32, families and channels in the order of ``channels``; 4 bytes x C per pixel.
    """
    rgb_HWC = image_HWC.astype(np.float32) / np.float32(255)
    views = Views(rgb_HWC, cv2.cvtColor(rgb_HWC, cv2.COLOR_RGB2HSV), cv2.cvtColor(rgb_HWC, cv2.COLOR_RGB2LAB))
    chosen: list[Map] = []
    for family, numbers in channels.items():
        if family == "cnn":
            assert cnn is not None, "the family cnn comes with its backbone"
            with torch.inference_mode():
                maps = cnn(image_HWC)
        else:
            maps = DRAWN[family](views)
        chosen += [maps[number] for number in numbers]
    return np.stack(chosen)


def all_channels(families: Sequence[str], cnn: FrozenBackbone | None = None) -> dict[str, tuple[int, ...]]:
    """Return every channel of ``families``, as ``pixel_features`` takes them."""
    views = Views(*(np.zeros((2, 2, 3), np.float32) for _ in range(3)))
    counts = {family: cnn.channels if cnn and family == "cnn" else len(DRAWN[family](views)) for family in families}
    return {family: tuple(range(count)) for family, count in counts.items()}


def _mean(plane: Map, window: int) -> Map:
    mean: Map = cv2.boxFilter(plane, cv2.CV_32F, (window, window), borderType=cv2.BORDER_REPLICATE)
    return mean


def _smooth(plane: Map, sigma: float) -> Map:
    smooth: Map = cv2.GaussianBlur(plane, (0, 0), sigma, borderType=cv2.BORDER_REPLICATE)
    return smooth


def _derivative(plane: Map, order_x: int, order_y: int) -> Map:
    """Return a central difference across 3 x 3 pixels, smoothed across its direction: the slope per pixel."""
    scale = {1: 1 / 8, 2: 1 / 4}[order_x + order_y]
    slope: Map = cv2.Sobel(plane, cv2.CV_32F, order_x, order_y, ksize=3, scale=scale, borderType=cv2.BORDER_REPLICATE)
    return slope


def _derivatives(plane: Map, sigma: float) -> list[Map]:
    smooth = _smooth(plane, sigma)
    dx, dy = (np.float32(sigma) * _derivative(smooth, *order) for order in ((1, 0), (0, 1)))
    hessian = (np.float32(sigma**2) * _derivative(smooth, *order) for order in ((2, 0), (0, 2), (1, 1)))
    tensor = (_smooth(product, 2 * sigma) for product in (dx * dx, dy * dy, dx * dy))
    roots = (np.sqrt(np.maximum(value, 0)) for value in _eigenvalues(*tensor))
    return [_length(dx, dy), *_eigenvalues(*hessian), *roots]


def _eigenvalues(xx: Map, yy: Map, xy: Map) -> tuple[Map, Map]:
    """Return the larger and the smaller eigenvalue of the symmetric matrices [[xx, xy], [xy, yy]]."""
    half = np.float32(0.5)
    middle, apart = half * (xx + yy), _length(half * (xx - yy), xy)
    return middle + apart, middle - apart


def _length(x: Map, y: Map) -> Map:
    # cv2.magnitude's last bit depends on where in memory its arguments lie (seen with OpenCV 5.0).
    return np.sqrt(x * x + y * y)
