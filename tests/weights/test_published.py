"""Published weights by name: a server on this machine in place of the publishers' own."""

import copy
import io
import logging
import os
import sys
import tarfile
import threading
import zipfile
from dataclasses import replace
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest
import torch

import gram_backbones
from gram_backbones import create_model, list_models, load_weights, registry
from gram_backbones.aognet import AOGNet
from gram_backbones.registry import find_variant
from gram_backbones.weights import WeightError, read_weight_file
from gram_backbones.weights.convert import convert_weights
from gram_backbones.weights.files import file_hash
from gram_backbones.weights.published import ACCEPT, kept_file, weight_table
from gram_backbones.weights.records import RESEARCH_ONLY, WEIGHTS
from tests.weights.test_loading import TINY, settled

pytest.importorskip("gdown", reason="gdown is not installed")

NAME = "aognet_tiny.authors_mixup"  # of no authors: a small model stands for theirs


class TinyAOGNet(AOGNet):
    VARIANTS = {"aognet_tiny": TINY}


class Server(ThreadingHTTPServer):
    """Serves ``content`` under every path, in parts if asked; ``stop_at`` breaks one answer off."""

    def __init__(self):
        super().__init__(("127.0.0.1", 0), Handler)
        self.content, self.stop_at, self.requests = b"", None, []


class Handler(BaseHTTPRequestHandler):
    def do_GET(self):
        content, wanted = self.server.content, self.headers.get("Range")
        first = int(wanted.removeprefix("bytes=").rstrip("-")) if wanted else 0
        self.server.requests.append(first)
        self.send_response(206 if wanted else 200)
        if wanted:
            self.send_header("Content-Range", f"bytes {first}-{len(content) - 1}/{len(content)}")
        self.send_header("Content-Length", str(len(content) - first))
        self.send_header("Content-Type", "application/octet-stream")
        self.end_headers()
        stop, self.server.stop_at = self.server.stop_at, None
        self.wfile.write(content[first:stop])

    def log_message(self, *args):
        pass


@pytest.fixture
def server(tmp_path, monkeypatch):
    with Server() as found:
        threading.Thread(target=found.serve_forever, daemon=True).start()
        record = replace(
            WEIGHTS["aognet_12m_released.authors_mixup"],
            name=NAME,
            model="aognet_tiny",
            url=f"http://127.0.0.1:{found.server_port}/weights",
        )
        monkeypatch.setattr(registry, "_FAMILIES", [*registry._FAMILIES, TinyAOGNet])
        monkeypatch.setitem(WEIGHTS, NAME, record)
        monkeypatch.setattr(torch.hub, "_hub_dir", None)
        monkeypatch.setenv("TORCH_HOME", str(tmp_path / "home"))
        monkeypatch.setenv("NO_PROXY", "127.0.0.1")
        monkeypatch.delenv(ACCEPT, raising=False)
        found.source = settled(create_model("aognet_tiny"))
        buffer = io.BytesIO()
        torch.save({"state_dict": found.source.state_dict()}, buffer)
        found.file = buffer.getvalue()
        yield found
        found.shutdown()


def zipped(**files):
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("folder/", "")
        for name, content in files.items():
            archive.writestr(f"folder/{name.replace('_pth', '.pth')}", content)
    return buffer.getvalue()


def tarred(mode="w:gz", **files):
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode=mode) as archive:
        for name, content in files.items():
            info = tarfile.TarInfo(f"folder/{name.replace('_pth', '.pth')}")
            info.size = len(content)
            archive.addfile(info, io.BytesIO(content))
    return buffer.getvalue()


def legacy(file):
    """As training scripts of those days wrote it: with the rest of the run and a prefix."""
    content, buffer = torch.load(io.BytesIO(file), weights_only=True), io.BytesIO()
    state = {f"module.{name}": value for name, value in content["state_dict"].items()}
    content = {"epoch": 120, "arch": "aognet", "state_dict": state, "best_prec1": torch.tensor(1.0)}
    torch.save(content, buffer, _use_new_zipfile_serialization=False)
    return buffer.getvalue()


PACKED = {
    "zip": lambda file: zipped(model_pth=file, readme=b"by the authors"),
    "tar": lambda file: tarred(model_pth=file, readme=b"by the authors"),
    "bare": bytes,
    "tar of a file from before torch 1.6": lambda file: tarred("w", model_pth=legacy(file)),
}


def same(model, source):
    own = model.state_dict()
    return all(torch.equal(value, own[name]) for name, value in source.state_dict().items())


@pytest.mark.grid
@pytest.mark.parametrize("kind", PACKED)
def test_a_tag_downloads_once_and_keeps_a_checked_file_with_its_record(kind, server, caplog):
    server.content = PACKED[kind](server.file)
    with caplog.at_level(logging.INFO):
        model = create_model("aognet_tiny", weights="authors_mixup", accept_license=RESEARCH_ONLY)
    assert same(model, server.source) and server.requests == [0]
    path = kept_file(WEIGHTS[NAME])
    assert f"tensors from {NAME}" in caplog.text and f"kept {NAME} in {path}" in caplog.text
    assert path.name == f"{NAME}-{file_hash(path)}.safetensors"
    record = read_weight_file(path).record
    assert record["licence"] == RESEARCH_ONLY and record["top1"] == "78.37"
    assert record["source"] == WEIGHTS[NAME].url and len(record["source_sha256"]) == 64
    # The second time needs neither a server, nor gdown, nor an answer about the licence.
    server.content = b""
    assert same(create_model("aognet_tiny", weights=NAME), server.source)
    assert server.requests == [0]
    assert not list(path.parent.rglob("archive*"))


def test_without_gdown_the_message_says_how_to_install_it(server, monkeypatch):
    monkeypatch.setitem(sys.modules, "gdown", None)
    with pytest.raises(WeightError, match=r"needs gdown.*pip install 'gram-backbones\[gdown\]'"):
        create_model("aognet_tiny", weights="authors_mixup", accept_license=RESEARCH_ONLY)


@pytest.mark.grid
@pytest.mark.parametrize("given", ("mit", None))
def test_a_licence_is_accepted_by_its_name_or_nothing_is_downloaded(given, server, monkeypatch):
    server.content = server.file
    model = create_model("aognet_tiny")
    before = copy.deepcopy(model.state_dict())
    with pytest.raises(WeightError) as refused:
        load_weights(model, "authors_mixup", accept_license=given)
    said = str(refused.value)
    assert "licence is 'research only'" in said and "accept_license='research only'" in said
    assert f"{ACCEPT}='research only'" in said and (given is None or "'mit'" in said)
    assert not server.requests
    assert all(torch.equal(value, before[n]) for n, value in model.state_dict().items())
    monkeypatch.setenv(ACCEPT, RESEARCH_ONLY)
    load_weights(model, "authors_mixup")
    assert same(model, server.source)


def test_a_file_with_another_hash_is_refused_and_downloaded_anew(server, monkeypatch):
    server.content = server.file
    record = WEIGHTS[NAME]
    monkeypatch.setenv(ACCEPT, RESEARCH_ONLY)
    monkeypatch.setitem(WEIGHTS, NAME, replace(record, sha256="0" * 64))
    with pytest.raises(WeightError, match=f"does not have the SHA-256 {'0' * 64}"):
        create_model("aognet_tiny", weights="authors_mixup")
    assert kept_file(record) is None
    monkeypatch.setitem(WEIGHTS, NAME, record)
    create_model("aognet_tiny", weights="authors_mixup")
    assert server.requests == [0, 0]
    path = kept_file(record)
    path.write_bytes(path.read_bytes()[:-1] + b"\1")
    with pytest.raises(WeightError, match="was changed"):
        create_model("aognet_tiny", weights="authors_mixup")


def test_an_interrupted_download_goes_on_where_it_stopped(server, monkeypatch):
    server.content = zipped(model_pth=server.file, paper=os.urandom(3 << 20))
    monkeypatch.setenv(ACCEPT, RESEARCH_ONLY)
    server.stop_at = stop = 2 << 20
    with pytest.raises(FileNotFoundError, match="cannot download .* goes on where"):
        create_model("aognet_tiny", weights="authors_mixup")
    assert same(create_model("aognet_tiny", weights="authors_mixup"), server.source)
    continued = server.requests[-1]
    assert 0 < continued <= stop


@pytest.mark.parametrize(
    ("pack", "says"),
    (
        (lambda file: zipped(a_pth=file, b_pth=file), r"one weight file, but has \['folder/a.pth'"),
        (lambda file: tarred(readme=b"x"), r"one weight file, but has \['folder/readme'\]"),
        (lambda file: zipped(a_pth=bytes(9 << 20)), "claims 9437184 bytes"),
        (lambda file: b"<html>quota exceeded</html>", "neither safetensors"),
        (lambda file: tarred(a_pth=b"\x80\x02cos\nsystem\n."), "cannot read"),
    ),
)
def test_what_is_not_one_weight_file_is_refused(pack, says, server, monkeypatch):
    server.content = pack(server.file)
    monkeypatch.setenv(ACCEPT, RESEARCH_ONLY)
    with pytest.raises(WeightError, match=f"downloaded and refused: .*{says}"):
        create_model("aognet_tiny", weights="authors_mixup")
    assert kept_file(WEIGHTS[NAME]) is None


def test_a_file_of_another_network_is_refused(server, monkeypatch):
    monkeypatch.setattr("gram_backbones.weights.fit.fitting_models", lambda file: [])
    buffer = io.BytesIO()
    state = {n: v for n, v in server.source.state_dict().items() if not n.startswith("res5")}
    torch.save(state, buffer)
    server.content = buffer.getvalue()
    monkeypatch.setenv(ACCEPT, RESEARCH_ONLY)
    with pytest.raises(WeightError, match="refused: "):
        create_model("aognet_tiny", weights="authors_mixup")


@pytest.mark.slow
def test_a_conversion_takes_the_tag_too(server, tmp_path):
    server.content = server.file
    target = tmp_path / "t.pth"
    record = convert_weights(
        "authors_mixup", target, "aognet_tiny", layout="mmdet", accept_license=RESEARCH_ONLY
    )
    assert record["licence"] == RESEARCH_ONLY and record["top1"] == "78.37"
    found = load_weights(create_model("aognet_tiny", features_only=True), target)
    assert len(found.values) == found.wanted


@pytest.mark.slow
def test_timm_takes_the_tag_too(server, monkeypatch):
    timm = pytest.importorskip("timm", reason="timm is not installed")
    import gram_backbones.timm  # noqa: F401 (registers)

    monkeypatch.setitem(
        WEIGHTS,
        "aognet_4m.authors_mixup",
        replace(WEIGHTS[NAME], name="aognet_4m.authors_mixup", model="aognet_4m"),
    )
    source, buffer = settled(create_model("aognet_4m")), io.BytesIO()
    torch.save(source.state_dict(), buffer)
    server.content = buffer.getvalue()
    arguments = dict(weights="authors_mixup", accept_license=RESEARCH_ONLY)
    assert same(timm.create_model("aognet_4m", **arguments), source)
    assert timm.create_model("aognet_4m", features_only=True, weights="authors_mixup")


def test_detectron2_takes_the_tag_too(server, monkeypatch):
    pytest.importorskip("detectron2", reason="Detectron2 is not installed")
    import gram_backbones.d2 as d2
    from tests.d2.test_backbones import build_model, small_config

    server.content = server.file
    cfg = small_config("mask_rcnn_aognet12m_c4_1x")
    cfg.MODEL.AOGNET.VARIANT = "aognet_4m"  # with the small channels and blocks: TINY
    detector = build_model(cfg)
    with pytest.raises(WeightError, match="accept_license='research only'"):
        d2.GramCheckpointer(detector).load("authors_mixup")
    monkeypatch.setenv(ACCEPT, RESEARCH_ONLY)
    d2.GramCheckpointer(detector).load("authors_mixup")
    own = server.source.state_dict()
    parts = {"": detector.backbone, "res5.": detector.roi_heads.res5}
    for place, part in parts.items():
        assert all(torch.equal(v, own[place + n]) for n, v in part.state_dict().items())


def test_mmdetection_takes_the_tag_too(server):
    pytest.importorskip("mmdet", reason="MMDetection is not installed")
    from mmdet.registry import MODELS

    import gram_backbones.mmdet  # noqa: F401 (registers)

    server.content = server.file
    init_cfg = dict(type="Pretrained", checkpoint="authors_mixup", accept_license=RESEARCH_ONLY)
    own = server.source.state_dict()
    for kind, place in (("AOGNet", ""), ("AOGStage", "res5.")):
        module = MODELS.build(dict(type=kind, variant=TINY, init_cfg=init_cfg))
        module.init_weights()
        assert all(torch.equal(v, own[place + n]) for n, v in module.state_dict().items())


def test_a_model_without_weights_names_those_that_have_some():
    for model, weights in (("aognet_12m", "authors"), ("aognet_4m", "imagenet")):
        with pytest.raises((WeightError, FileNotFoundError)) as refused:
            create_model(model, weights=weights)
        said = str(refused.value)
        assert f"{model} has no published weights; models that have some: " in said
        assert "aognet_12m_released, aognet_40m_released, dgnet_r18" in said
    with pytest.raises(WeightError, match="dgnet_r50 has tv_in1k, tv2_in1k"):
        create_model("dgnet_r50", weights="authors")


def test_a_variant_with_other_edges_takes_its_base_network_s_weights():
    row = find_variant("dgnet_r50")
    for name in list_models():
        takes = replace(row, edges="static", side_bias=-1.0).takes_weights_of(find_variant(name))
        assert takes == (name == "dgnet_r50")


def test_the_table_has_a_row_for_every_record(server):
    server.content = server.file
    row = (
        "aognet_tiny",
        "authors_mixup",
        "78.37",
        RESEARCH_ONLY,
        "47 MB",
        WEIGHTS[NAME].origin,
        "no",
    )
    assert row in weight_table()
    create_model("aognet_tiny", weights=NAME, accept_license=RESEARCH_ONLY)
    path = str(kept_file(WEIGHTS[NAME]))
    size = f"{os.path.getsize(path) / 2**20:.0f} MB"
    assert (*row[:4], size, row[5], path) in weight_table()
    assert len(weight_table()) == len(WEIGHTS) + 1
    assert gram_backbones.list_weights("dgnet_r50.*") == ["dgnet_r50.tv2_in1k", "dgnet_r50.tv_in1k"]
