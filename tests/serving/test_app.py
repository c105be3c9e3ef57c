"""The service over HTTP, with a real registered model behind it: who gets in, what comes back, what is refused."""

from __future__ import annotations

import io
import json
import logging
import os
import re
import shutil
import socket
import subprocess
import time
import zipfile
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from answering import Service, answering
from browser import needs_chromium, page
from judging import judging
from numpy.typing import NDArray
from PIL import Image
from registering import NAME, Registered, registered

from segmill.data.packing.packed import PackedSplit
from segmill.errors import SegmillError
from segmill.promotion.golden import FILE
from segmill.serving.answers import Wanted
from segmill.serving.keys import Scope
from segmill.serving.model import ServedModel, load_version

__all__ = ["judging", "registered"]

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def served(registered: Registered) -> ServedModel:
    return load_version(registered.uri, NAME, registered.version, registered.trusted, engine="pytorch")


@pytest.fixture(scope="module")
def service(served: ServedModel, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Service]:
    with answering(served, tmp_path_factory.mktemp("service")) as found:
        yield found


@pytest.fixture(scope="module")
def image(judging: Path) -> NDArray[np.uint8]:
    return PackedSplit(judging / "packed" / "test").image(3)


def png(image_HWC: NDArray[np.uint8], kind: str = "PNG") -> bytes:
    content = io.BytesIO()
    Image.fromarray(image_HWC).save(content, kind)
    return content.getvalue()


def mask(content: bytes) -> NDArray[np.uint8]:
    return np.asarray(Image.open(io.BytesIO(content)))


RAW = {"content-type": "image/png"}


def test_an_image_comes_back_as_the_mask_that_the_registered_model_predicts(
    service: Service, served: ServedModel, image: NDArray[np.uint8]
) -> None:
    answer = service.client.post("/v1/segment", content=png(image), headers=service.key() | RAW)
    assert (answer.status_code, answer.headers["content-type"]) == (200, "image/png"), answer.text
    (expected,) = served.segment([image], [Wanted()])
    assert (mask(answer.content) == expected.ids_HW).all()
    assert answer.headers["x-model-version"] == served.facts.version and len(answer.headers["x-request-id"]) == 32


@pytest.mark.skipif(shutil.which("curl") is None, reason="there is no curl here")
def test_the_pages_command_gets_the_mask(
    service: Service, served: ServedModel, image: NDArray[np.uint8], tmp_path: Path
) -> None:
    page = (Path(__file__).parents[2] / "docs" / "serving.md").read_text()
    (command,) = re.findall(r"^curl (?:.*\\\n)*.*$", page, re.MULTILINE)
    (tmp_path / "street.png").write_bytes(png(image))
    here = command.replace("http://127.0.0.1:8000", str(service.client.base_url))
    key = {"KEY": service.key()["authorization"].removeprefix("Bearer "), "PATH": os.environ["PATH"]}
    done = subprocess.run(here, shell=True, cwd=tmp_path, env=key, capture_output=True, text=True)
    assert done.returncode == 0 and here != command, done.stderr
    (expected,) = served.segment([image], [Wanted()])
    assert (mask((tmp_path / "mask.png").read_bytes()) == expected.ids_HW).all()


def test_several_images_of_several_sizes_in_each_form(service: Service, image: NDArray[np.uint8]) -> None:
    sent = [("image", ("../../etc/passwd", png(image))), ("image", ("b\r\nx: y", png(image[:40, :30], "TIFF")))]
    query = {"form": "json", "extra": ["overlay", "probabilities"]}
    answer = service.client.post("/v1/segment", files=sent, params=query, headers=service.key())
    assert answer.status_code == 200, answer.text
    first, second = answer.json()["images"]
    assert np.array(second["ids"]).shape == (40, 30) == (second["height"], second["width"])
    assert first["overlay"] and 0 < first["confidence"] <= 1
    zipped = service.client.post("/v1/segment", files=sent, params={"form": "zip"}, headers=service.key())
    with zipfile.ZipFile(io.BytesIO(zipped.content)) as archive:
        assert (mask(archive.read("0/mask.png")) == np.array(first["ids"])).all()
        assert (mask(archive.read("1/mask.png")) == np.array(second["ids"])).all()


def test_a_grey_image_is_segmented(service: Service, image: NDArray[np.uint8]) -> None:
    answer = service.client.post("/v1/segment", content=png(image[:, :, 0]), headers=service.key() | RAW)
    assert answer.status_code == 200 and mask(answer.content).shape == image.shape[:2]


def test_each_scope_opens_its_routes_and_no_others(service: Service, image: NDArray[np.uint8]) -> None:
    opens = {
        ("GET", "/"): Scope.SEGMENT, ("GET", "/v1/model"): Scope.SEGMENT, ("GET", "/openapi.json"): Scope.SEGMENT,
        ("GET", "/readyz"): Scope.METRICS, ("GET", "/metrics"): Scope.METRICS, ("POST", "/v1/hint"): Scope.ADMIN,
    }  # fmt: skip
    for scope in Scope:
        header = service.key(scope)
        for (method, path), needed in opens.items():
            answer = service.client.request(method, path, headers=header)
            assert answer.is_success == (scope == needed), (scope, path, answer.text)
            assert scope == needed or answer.status_code == 403
    assert service.client.get("/healthz").json() == {"status": "alive"}


def test_a_browser_may_send_the_key_as_a_password(service: Service) -> None:
    key = service.key()["authorization"].partition(" ")[2]
    page = service.client.get("/", auth=("me", key))
    assert (
        page.status_code == 200
        and "Try an image" in page.text
        and "default-src 'none'" in page.headers["content-security-policy"]
    )
    assert service.client.get("/", auth=("me", key[:-1])).status_code == 401


@needs_chromium
def test_an_image_that_is_dropped_on_the_page_is_shown_with_its_classes(
    service: Service, image: NDArray[np.uint8], tmp_path: Path
) -> None:
    key = service.key()["authorization"].partition(" ")[2]
    sound, tiff, broken = tmp_path / "street.png", tmp_path / "street.tif", tmp_path / "broken.png"
    sound.write_bytes(png(image))
    tiff.write_bytes(png(image, "TIFF"))
    broken.write_bytes(b"this is no image")
    with page() as opened:
        opened.open(f"http://me:{key}@127.0.0.1:{service.address[1]}/")
        assert opened.until("at('model').textContent.includes('version') && at('model').textContent") == (
            f"{NAME}, version 1"
        )
        opened.drag(sound, "#drop", "dragEnter", "dragOver")
        assert opened.value("at('drop').classList.contains('over')")
        opened.drag(sound, "#drop", "drop")
        opened.until("!at('pair').hidden && at('overlay').naturalWidth && at('image').naturalWidth")
        height, width = image.shape[:2]
        assert opened.value("[at('overlay').naturalWidth, at('overlay').naturalHeight]") == [width, height]
        size = f"{width} \N{MULTIPLICATION SIGN} {height} px"
        assert opened.value("at('said').textContent").startswith(f"Version 1, {size}")
        names = opened.value("[...at('classes').rows].map(row => row.cells[0].textContent.trim())")
        shares = opened.value("[...at('classes').rows].map(row => parseFloat(row.cells[1].textContent))")
        assert set(names) <= set(service.backend.facts().classes.names) and abs(sum(shares) - 100) < 0.5
        assert opened.complaints == []
        opened.picture(tmp_path / "found.png")
        opened.drag(tiff, "h1", "dragEnter", "dragOver", "drop")  # beside the box; no browser shows a TIFF
        opened.until("at('image').hidden && at('overlay').naturalWidth && at('name').textContent.includes('show such')")
        opened.drag(broken, "#drop", "dragEnter", "dragOver", "drop")
        assert opened.until("at('said').classList.contains('wrong') && at('said').textContent").startswith(
            "the image was refused"
        )
        assert opened.value("[at('pair').hidden, at('classes').rows.length]") == [True, 0]
        opened.picture(tmp_path / "refused.png")


def bomb() -> bytes:
    """A PNG of some kilobytes that says it has 60,000 x 60,000 pixels."""
    content = bytearray(png(np.zeros((8, 8), np.uint8)))
    content[16:24] = (60_000).to_bytes(4, "big") * 2
    return bytes(content)


def hidden_bomb() -> bytes:
    """A PNG within the limit of bytes and beyond that of pixels."""
    return png(np.zeros((1000, 1000, 3), np.uint8))


@pytest.mark.parametrize(
    ("content", "kind", "status", "said"),
    [
        (b"", "image/png", 400, "no image came"),
        (b"GIF89a" + b"0" * 50, "image/png", 422, "the image was refused"),
        (b"x" * 250_000, "image/png", 413, "the image has 250000 bytes, more than 200000"),
        (b"x" * 350_000, "image/png", 413, "the body has more than 300000 bytes"),
        (bomb(), "image/png", 422, "the image was refused"),
        (hidden_bomb(), "image/png", 422, "1000 x 1000 pixels, more than 150000"),
        (b"{}", "application/json", 415, "the body is no image and no form"),
        (b"--x\r\nnonsense", "multipart/form-data; boundary=y", 400, ""),
        (b"nonsense", "multipart/form-data", 400, "Missing boundary"),
    ],
)
def test_what_is_no_image_is_refused_in_a_sentence(
    service: Service, content: bytes, kind: str, status: int, said: str
) -> None:
    answer = service.client.post("/v1/segment", content=content, headers=service.key() | {"content-type": kind})
    assert answer.status_code == status, answer.text
    assert said in answer.json()["error"]


def test_a_truncated_image_is_refused_and_the_next_is_answered(service: Service, image: NDArray[np.uint8]) -> None:
    header = service.key() | RAW
    whole = png(image)
    cut = service.client.post("/v1/segment", content=whole[: len(whole) // 2], headers=header)
    assert cut.status_code == 422 and cut.json()["error"].startswith("the image was refused")
    assert service.client.post("/v1/segment", content=whole, headers=header).status_code == 200


def test_too_many_parts_and_too_many_pixels_together(service: Service) -> None:
    header, one = service.key(), png(np.zeros((4, 4, 3), np.uint8))
    many = service.client.post("/v1/segment", files=[("image", (str(n), one)) for n in range(1000)], headers=header)
    assert many.status_code == 400 and "Too many files" in many.json()["error"]
    large = png(np.zeros((300, 450, 3), np.uint8))
    both = service.client.post("/v1/segment?form=rle", files=[("image", ("a", large))] * 2, headers=header)
    assert (both.status_code, both.json()["error"]) == (
        413,
        "image 1: the images have more than 200000 pixels together",
    )


def test_one_mask_alone_comes_as_png(service: Service, image: NDArray[np.uint8]) -> None:
    header = service.key()
    two = service.client.post("/v1/segment", files=[("image", ("a", png(image)))] * 2, headers=header)
    assert two.status_code == 400 and "form=png answers one mask" in two.json()["error"]
    wrong = service.client.post("/v1/segment?form=gif", content=png(image), headers=header | RAW)
    assert wrong.status_code == 422 and wrong.json()["error"].startswith("form: Input should be 'png', 'rle'")


def test_a_body_that_dribbles_is_cut_off(service: Service) -> None:
    header = service.key()["authorization"]
    with socket.create_connection(service.address, timeout=10) as connection:
        connection.sendall(
            f"POST /v1/segment HTTP/1.1\r\nhost: x\r\ncontent-type: image/png\r\ncontent-length: 1000\r\n"
            f"authorization: {header}\r\n\r\n".encode()
        )
        began = time.monotonic()
        connection.sendall(b"x")
        answer = connection.recv(4096)
    assert answer.startswith(b"HTTP/1.1 408") and time.monotonic() - began < 9


def test_a_deadline_is_kept(service: Service, image: NDArray[np.uint8]) -> None:
    header = service.key() | RAW
    service.backend.hold_s = 30.0
    try:
        began = time.monotonic()
        answer = service.client.post("/v1/segment", content=png(image), headers=header | {"x-deadline-seconds": "0.5"})
        assert answer.status_code == 504 and time.monotonic() - began < 15
        wrong = service.client.post("/v1/segment", content=png(image), headers=header | {"x-deadline-seconds": "-1"})
        assert wrong.status_code == 400
    finally:
        service.backend.hold_s = 0.0


def test_without_a_model_it_is_alive_and_not_ready(service: Service, image: NDArray[np.uint8]) -> None:
    header, model = service.key(*Scope), service.backend.model
    service.backend.model = None
    try:
        assert service.client.get("/healthz").status_code == 200
        assert service.client.get("/readyz", headers=header).status_code == 503
        answer = service.client.post("/v1/segment", content=png(image), headers=header | RAW)
        assert (answer.status_code, answer.headers["retry-after"]) == (503, "5")
    finally:
        service.backend.model = model
    assert service.client.get("/readyz", headers=header).json()["version"] == "1"


def test_a_revoked_key_is_refused_and_says_so(service: Service) -> None:
    header = service.key()
    service.keys.revoke(header["authorization"].split("_")[1])
    until = time.monotonic() + 5
    service.key()  # reads the keys again, as a replica does every 2 s
    answer = service.client.get("/v1/model", headers=header)
    assert (answer.status_code, answer.json()["error"]) == (401, "this key is revoked") and time.monotonic() < until


def test_each_request_leaves_a_row_without_content(
    service: Service, image: NDArray[np.uint8], caplog: pytest.LogCaptureFixture
) -> None:
    header = service.key()
    with caplog.at_level(logging.INFO, "segmill.serving"):
        service.client.post(
            "/v1/segment", content=png(image), headers=header | RAW | {"x-request-id": "from-the-client-7"}
        )
    until = time.monotonic() + 10
    while time.monotonic() < until:
        rows = [row for row in service.audit.last(50) if row["request"] == "from-the-client-7"]
        if rows:
            break
        time.sleep(0.1)
    (row,) = rows
    assert (row["status"], row["images"], row["version"], row["route"]) == (200, 1, "1", "/v1/segment")
    assert row["bytes_in"] == len(png(image)) and row["key"] == header["authorization"].split("_")[1]
    (line,) = [json.loads(one.message) for one in caplog.records if "from-the-client-7" in one.message]
    assert line["milliseconds"] == row["milliseconds"] and header["authorization"][-64:] not in caplog.text


def test_the_figures_are_prometheus(service: Service, image: NDArray[np.uint8]) -> None:
    from prometheus_client.parser import text_string_to_metric_families

    service.client.post("/v1/segment", content=png(image), headers=service.key() | RAW)
    answer = service.client.get("/metrics", headers=service.key(Scope.METRICS))
    found = {family.name: family for family in text_string_to_metric_families(answer.text)}
    total = [sample.value for sample in found["segmill_requests"].samples if sample.labels.get("status") == "200"]
    assert sum(total) >= 1 and found["segmill_images"].samples[0].labels == {"version": "1"}


def test_a_version_is_loaded_only_where_it_is_what_was_signed(registered: Registered, tmp_path: Path) -> None:
    golden = registered.folder / FILE
    before = golden.read_bytes()
    golden.write_bytes(before[:-1] + bytes([before[-1] ^ 1]))
    try:
        with pytest.raises(SegmillError, match="was changed after it was signed"):
            load_version(registered.uri, NAME, registered.version, registered.trusted)
    finally:
        golden.write_bytes(before)
