"""The bill of materials: valid by CycloneDX's schema, whole, and of what is installed here."""

from __future__ import annotations

import json
from importlib.metadata import PackageNotFoundError, version

import pytest
from cyclonedx.schema import SchemaVersion
from cyclonedx.validation.json import JsonStrictValidator
from registering import NAME, Registered

from segmill.promotion import signing
from segmill.promotion.registry import REQUIREMENTS
from segmill.promotion.sbom import FILE, bill_of_materials


def test_a_versions_bill_is_valid_signed_and_names_what_the_model_needs(registered: Registered) -> None:
    text = (registered.folder / FILE).read_text()
    assert JsonStrictValidator(SchemaVersion.V1_6).validate_str(text) is None
    manifest = signing.read_manifest(registered.folder, registered.trusted)
    assert FILE in manifest.files
    bom = json.loads(text)
    assert bom["metadata"]["component"]["name"] == NAME
    assert bom["metadata"]["component"]["version"] == manifest.ensemble_sha256
    found = {one["name"]: one for one in bom["components"]}
    for name in REQUIREMENTS:
        assert found[name]["version"] == version(name)
        assert found[name]["purl"] == f"pkg:pypi/{name}@{version(name).replace('+', '%2B')}"
    needs = {one["ref"]: one.get("dependsOn", []) for one in bom["dependencies"]}
    assert f"numpy=={version('numpy')}" in needs[f"safetensors=={version('safetensors')}"] + needs["model"]
    assert f"sqlalchemy=={version('sqlalchemy')}" in needs[f"mlflow=={version('mlflow')}"]
    assert "pytest" not in found and "ray" not in found, "only what the model needs"
    refs = {one["bom-ref"] for one in bom["components"]} | {"model"}
    assert set(needs) <= refs and {one for some in needs.values() for one in some} <= refs


def test_a_changed_bill_is_noticed_by_the_schema() -> None:
    bom = json.loads(bill_of_materials("m", "0" * 64, ["numpy"]))
    bom["components"][0]["kind"] = "library"
    assert JsonStrictValidator(SchemaVersion.V1_6).validate_str(json.dumps(bom)) is not None


def test_a_distribution_that_is_not_installed_is_named() -> None:
    with pytest.raises(PackageNotFoundError, match="no-such-thing"):
        bill_of_materials("m", "0" * 64, ["no-such-thing"])
