"""A version's bill of materials (SBOM): the distributions that its model needs, as they were where it was registered.

CycloneDX 1.6 in JSON, written by its own Python library: https://cyclonedx.org/docs/1.6/json
"""

from __future__ import annotations

import functools
import platform
from collections.abc import Iterator, Sequence
from importlib.metadata import Distribution, PackageNotFoundError, distribution

from cyclonedx.contrib.license.factories import LicenseFactory
from cyclonedx.model.bom import Bom
from cyclonedx.model.component import Component, ComponentType
from cyclonedx.output.json import JsonV1Dot6
from packageurl import PackageURL
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

FILE = "sbom.cdx.json"  # in the model's folder


def bill_of_materials(model: str, ensemble_sha256: str, names: Sequence[str]) -> str:
    """Return the bill of a model that needs the distributions ``names`` and what they need themselves.

    Args:
        model: the registered model's name.
        ensemble_sha256: its ensemble's digest, which stands for a version number, since MLflow gives that later.
        names: of installed distributions.

    Returns:
        JSON: each distribution that is installed with version, purl and licence, and which needs which.

    Raises:
        PackageNotFoundError: one of ``names`` is not installed.
    """
    installed = _closure(tuple(names))
    components = {name: _component(name, found) for name, found in installed.items()}
    python = Component(type=ComponentType.PLATFORM, name="python", version=platform.python_version(), bom_ref="python")
    of = Component(type=ComponentType.MACHINE_LEARNING_MODEL, name=model, version=ensemble_sha256, bom_ref="model")
    bom = Bom(components=[python, *components.values()])
    bom.metadata.component = of
    bom.register_dependency(of, [python, *(components[canonicalize_name(name)] for name in names)])
    for name, found in installed.items():
        bom.register_dependency(components[name], [components[one] for one in _needed(found) if one in components])
    return str(JsonV1Dot6(bom).output_as_string(indent=1))


@functools.cache
def _closure(names: tuple[str, ...]) -> dict[str, Distribution]:
    """Return what is installed of ``names`` and of what they need, by normalised name, in order of name."""
    found: dict[str, Distribution] = {str(canonicalize_name(name)): distribution(name) for name in names}
    waiting = list(found)
    while waiting:
        for name in _needed(found[waiting.pop()]):
            if name not in found:
                try:
                    found[name] = distribution(name)
                except PackageNotFoundError:  # for an extra that nobody asked for
                    continue
                waiting.append(name)
    return dict(sorted(found.items()))


def _needed(of: Distribution) -> Iterator[str]:
    """Yield the normalised names of what a distribution needs on this machine without extras."""
    for line in of.requires or ():
        requirement = Requirement(line)
        if requirement.marker is None or requirement.marker.evaluate({"extra": ""}):
            yield str(canonicalize_name(requirement.name))


def _component(name: str, found: Distribution) -> Component:
    licence = found.metadata["License-Expression"] if "License-Expression" in found.metadata else None  # noqa: SIM401
    return Component(
        type=ComponentType.LIBRARY,
        name=name,
        version=found.version,
        bom_ref=f"{name}=={found.version}",
        purl=PackageURL("pypi", name=name, version=found.version),
        licenses=[LicenseFactory().make_from_string(licence)] if licence else [],
    )
