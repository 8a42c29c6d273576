"""Weight files: what is read, and what is refused without a trace."""

import copy
import email.message
import errno
import io
import logging
import os
import pickle
import struct
import sys
import types
import urllib.request
import zipfile
from functools import cache
from itertools import islice
from pathlib import Path
from unittest.mock import Mock

import numpy as np
import pytest
import torch
from torchvision import models

pytest.importorskip("timm", reason="timm is not installed")


from gram_backbones import AOGNet, DGNet, create_model, load_weights
from gram_backbones.dgnet.names import detectron2_resnet
from gram_backbones.weights.convert import convert_weights
from gram_backbones.weights.files import (
    WeightError,
    WeightFile,
    fetch_file,
    file_hash,
    read_weight_file,
    write_weight_file,
)
from gram_backbones.weights.fit import fitting_models
from tests.weights.exploits import write_exploits
from tests.weights.fuzz import fuzz
from tests.weights.test_loading import TINY, settled

# Refused, and nothing changed


class Hostile:
    def __reduce__(self):
        return (os.mkdir, ("hostile_was_here",))


@cache
def _settled_state():
    with torch.random.fork_rng():  # other values than those of the network to fill
        torch.manual_seed(1)
        return settled(AOGNet(TINY)).state_dict()


def damage(kind, folder):
    """A bad file and what its refusal says."""
    state = copy.deepcopy(_settled_state())
    file = folder / "bad.pth"
    name = "res4.blocks.1.ops.0.conv1.0.weight"
    says = name
    if kind == "missing":
        del state[name]
    elif kind == "shape":
        state[name] = state[name][:1]
    elif kind == "left over":
        state["res4.blocks.7.norm.weight"] = torch.zeros(3)
        says = "left over: res4.blocks.7.norm.weight"
    elif kind == "nan":
        state[name][0, 0] = float("nan")
        says = f"not finite: {name}"
    elif kind == "another variant":
        state, says = AOGNet("aognet_4m").state_dict(), "its tensors fit aognet_4m$"
    elif kind == "integers":
        state[name] = state[name].to(torch.int8)
    torch.save(state, file)
    if kind == "truncated":
        file.write_bytes(file.read_bytes()[:-2000])
        says = "damaged or not a weight file"
    elif kind == "text":
        file.write_text("These are the weights you are looking for.")
        says = "neither safetensors"
    elif kind == "empty":
        file.write_bytes(b"")
        says = "empty or truncated"
    elif kind == "hostile":
        torch.save({"state_dict": state, "meta": Hostile()}, file)
        says = r"needs (posix|nt)\.mkdir.*--allow-pickle"
    elif kind == "hostile legacy":
        torch.save({"x": Hostile()}, file, _use_new_zipfile_serialization=False)
        says = r"needs (posix|nt)\.mkdir.*--allow-pickle"
    elif kind == "hostile mmengine":
        content = {"state_dict": {"a": Hostile()}, "meta": {"mmengine_version": "1"}}
        torch.save(content, file)
        says = "no tensors by name"
    elif kind == "hostile pkl":
        file.write_bytes(pickle.dumps({"model": Hostile()}))
        says = r"needs (posix|nt)\.mkdir.*--allow-pickle"
    elif kind == "caffe":
        arrays = {"conv1_w": np.zeros(2), "res2_0_branch2a_w": np.zeros(2)}
        file.write_bytes(pickle.dumps({"model": arrays, "__author__": "Caffe2"}))
        says = "BGR"
    elif kind == "no tensors":
        torch.save({"lr": 0.1}, file)
        says = "holds no tensors by name"
    return file, says


DAMAGES = (
    "missing", "shape", "left over", "nan", "another variant", "integers", "truncated", "text",
    "empty", "hostile", "hostile legacy", "hostile mmengine", "hostile pkl", "caffe", "no tensors",
)  # fmt: skip


@pytest.mark.parametrize("kind", DAMAGES)
def test_a_bad_file_is_refused_in_a_sentence_and_changes_nothing(kind, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    file, says = damage(kind, tmp_path)
    network = AOGNet(TINY)
    before = copy.deepcopy(network.state_dict())
    with pytest.raises(WeightError, match=says) as caught:
        load_weights(network, file)
    assert str(file) in str(caught.value) and "\n" not in str(caught.value)
    assert all(torch.equal(v, before[n]) for n, v in network.state_dict().items())
    assert not Path("hostile_was_here").exists()


def test_what_others_allow_torch_to_load_is_refused_here(tmp_path):
    torch.save({"x": Path("a")}, tmp_path / "file.pth")
    with torch.serialization.safe_globals([type(Path("a"))]):
        with pytest.raises(WeightError, match="pathlib"):
            read_weight_file(tmp_path / "file.pth")
        assert torch.serialization.get_safe_globals()


@pytest.mark.parametrize("name", ("gone.pth", "x" * 300, "~nobody-here/a.pth"))
def test_a_path_without_a_file_is_named(name):
    with pytest.raises(FileNotFoundError, match=f"there is no weight file {name}"):
        fetch_file(name)


def test_a_file_that_cannot_be_opened_is_not_called_damaged(tmp_path, monkeypatch):
    torch.save({"a": torch.ones(1)}, tmp_path / "w.pth")
    denied = PermissionError(errno.EACCES, "Permission denied")
    monkeypatch.setattr(Path, "open", Mock(side_effect=denied))
    with pytest.raises(WeightError, match="w.pth: Permission denied$"):
        read_weight_file(tmp_path / "w.pth")


def test_of_an_mmengine_checkpoint_only_the_tensors_are_read(tmp_path, monkeypatch):
    """Types that this process cannot even import stand next to them."""
    history = types.ModuleType("history")
    history.Buffer = type("Buffer", (list,), {"__module__": "history"})
    content = {
        "meta": {"mmengine_version": "0.10", "epoch": 1},
        "state_dict": {"backbone.weight": torch.arange(3.0)},
        "message_hub": {"log": history.Buffer((1, 2)), "f": history.Buffer},
    }
    with monkeypatch.context() as patch:
        patch.setitem(sys.modules, "history", history)
        torch.save(content, tmp_path / "epoch_1.pth")
    file = read_weight_file(tmp_path / "epoch_1.pth")
    assert torch.equal(file.tensors["backbone.weight"], torch.arange(3.0))
    assert "history" not in sys.modules
    assert file.record["mmengine_version"] == "0.10"


def test_pickles_of_python_2_and_of_other_numpys_are_read(tmp_path):
    array = np.arange(6, dtype=np.float32).reshape(2, 3)
    content = pickle.dumps({"model": {"w": array}, "__author__": "torchvision"}, protocol=2)
    (tmp_path / "a.pkl").write_bytes(content.replace(b"numpy._core", b"numpy.core"))
    (tmp_path / "b.pkl").write_bytes(content)
    for name in ("a.pkl", "b.pkl"):
        assert torch.equal(read_weight_file(tmp_path / name).tensors["w"], torch.tensor(array))


@pytest.mark.parametrize("protocol", range(2, pickle.HIGHEST_PROTOCOL + 1))
def test_arrays_of_every_binary_protocol_are_read(protocol, tmp_path):
    arrays = {"c": np.arange(6.0).reshape(2, 3), "f": np.asfortranarray(np.ones((2, 3)))}
    (tmp_path / "a.pkl").write_bytes(pickle.dumps({"model": arrays}, protocol=protocol))
    read = read_weight_file(tmp_path / "a.pkl").tensors
    assert all(torch.equal(read[name], torch.tensor(array)) for name, array in arrays.items())


def memo_bomb(folder):
    (folder / "f.pkl").write_bytes(b"\x80\x02}r" + struct.pack("<I", 1 << 31) + b".")
    return folder / "f.pkl"


def compressed(folder):
    torch.save({"w": torch.zeros(1 << 16)}, folder / "plain.pth")
    with (
        zipfile.ZipFile(folder / "plain.pth") as plain,
        zipfile.ZipFile(folder / "f.pth", "w", zipfile.ZIP_DEFLATED) as packed,
    ):
        for name in plain.namelist():
            packed.writestr(name, plain.read(name))
    return folder / "f.pth"


def saved(value):
    def write(folder):
        torch.save({"state_dict": {"w": value}}, folder / "f.pth")
        return folder / "f.pth"

    return write


def pickled(value):
    def write(folder):
        (folder / "f.pkl").write_bytes(pickle.dumps({"model": {"w": value}}, protocol=2))
        return folder / "f.pkl"

    return write


def huge_meta(folder):
    torch.save({"state_dict": {"w": torch.zeros(1)}, "meta": {"n": 1 << 20000}}, folder / "f.pth")
    return folder / "f.pth"


@pytest.mark.parametrize(
    ("write", "says"),
    (
        (memo_bomb, "no tensors by name"),
        (compressed, "compressed archive"),
        (saved(torch.zeros(2).to_sparse()), "needs torch._utils._rebuild_sparse_tensor"),
        (saved(torch.zeros(2, device="meta")), "needs torch._utils._rebuild_meta_tensor"),
        (saved(torch.zeros(2).to(torch.float8_e4m3fn)), "holds a .*UntypedStorage"),
        (saved(torch.zeros(1).expand(1 << 20)), "tensor of 1048576 elements in 1"),
        (pickled(np.zeros(2, dtype=np.complex64)), "an array of the type <c8"),
    ),
    ids=("memo", "compressed", "sparse", "meta", "float8", "expanded", "complex"),
)
def test_files_that_would_exhaust_or_surprise_are_refused(write, says, tmp_path):
    with pytest.raises(WeightError, match=says):
        read_weight_file(write(tmp_path))


def test_a_record_too_large_to_print_is_left_out(tmp_path):
    assert read_weight_file(huge_meta(tmp_path)).record == {}


def test_tensors_pickled_by_another_protocol_are_read(tmp_path):
    torch.save({"w": torch.ones(2)}, tmp_path / "f.pth", pickle_protocol=4)
    assert read_weight_file(tmp_path / "f.pth").tensors["w"].tolist() == [1, 1]


class ChangesAFunction:
    def __reduce__(self):
        return (torch._utils._rebuild_tensor_v2, (), {"__defaults__": None})


def test_a_refused_file_changes_no_function_of_torch(tmp_path):
    content = pickle.dumps({"meta": {"mmengine_version": "1"}, "x": ChangesAFunction()})
    torch.save({"w": torch.ones(2), "x": os.mkdir}, tmp_path / "bad.pth")
    with (
        zipfile.ZipFile(tmp_path / "bad.pth") as plain,
        zipfile.ZipFile(tmp_path / "worse.pth", "w") as worse,
    ):
        for name in plain.namelist():
            worse.writestr(name, content if name.endswith("data.pkl") else plain.read(name))
    with pytest.raises(WeightError):
        read_weight_file(tmp_path / "worse.pth")
    torch.save({"w": torch.ones(2)}, tmp_path / "good.pth")
    assert len(read_weight_file(tmp_path / "good.pth").tensors) == 1


@pytest.mark.slow
def test_what_overflows_in_the_network_s_precision_is_not_finite():
    state = AOGNet(TINY).double().state_dict()
    state["stem.0.0.weight"] *= 1e300
    with pytest.raises(WeightError, match="not finite: stem.0.0.weight"):
        load_weights(AOGNet(TINY), WeightFile("f", state))


def test_batch_norm_statistics_are_left_over_in_a_network_of_group_norms():
    with pytest.raises(WeightError, match="left over: .*running_mean"):
        load_weights(AOGNet(TINY, norm="GN"), WeightFile("f", AOGNet(TINY).state_dict()))


def test_msra_resnets_are_refused_in_torch_files_too(tmp_path):
    state = {detectron2_resnet(n): v for n, v in models.resnet18().state_dict().items()}
    torch.save({"model": state, "__author__": "Caffe2"}, tmp_path / "f.pth")
    with pytest.raises(WeightError, match="BGR"):
        load_weights(DGNet("dgnet_r18"), tmp_path / "f.pth")
    torch.save({"model": state}, tmp_path / "f.pth")
    found = load_weights(DGNet("dgnet_r18"), tmp_path / "f.pth")
    level, line = found.report()[-1]
    assert level == logging.WARNING and "does not name its author" in line


def test_a_record_of_other_images_is_warned_about_and_handed_on(tmp_path, caplog):
    state = AOGNet("aognet_4m").state_dict()
    write_weight_file(tmp_path / "f.pth", state, {"channel_order": "BGR"}, "state_dict")
    create_model("aognet_4m", features_only=True, weights=str(tmp_path / "f.pth"))
    assert "channel_order is BGR" in caplog.text  # at the default level
    record = convert_weights(tmp_path / "f.pth", tmp_path / "g.safetensors", "aognet_4m")
    assert record["channel_order"] == "BGR"


@pytest.mark.slow
def test_mutated_files_end_in_success_or_our_error():
    outcomes, seconds, memory = fuzz(150)
    print(dict(outcomes), f"longest {seconds:.2f} s, most memory {memory >> 20} MB")
    assert outcomes["refused"] > 100 and sum(outcomes.values()) == 150


def test_a_safetensors_header_that_lies_about_its_size(tmp_path):
    (tmp_path / "f.safetensors").write_bytes(struct.pack("<Q", 1 << 40) + b'{"a":1}')
    with pytest.raises(WeightError, match="damaged"):
        read_weight_file(tmp_path / "f.safetensors")


@pytest.mark.slow
def test_the_models_that_a_file_fits_are_named():
    with torch.device("meta"):
        state = create_model("dgnet_r50", edges="chain").state_dict()
    assert fitting_models(WeightFile("f", state)) == ["dgnet_r50"]
    with torch.device("meta"):
        state = create_model("aognet_12m_released").state_dict()
    assert fitting_models(WeightFile("f", state)) == ["aognet_12m_released"]


# Addresses


@pytest.fixture
def server(tmp_path, monkeypatch):
    file = tmp_path / "source.safetensors"
    write_weight_file(file, AOGNet(TINY).state_dict(), {}, "state_dict")

    class Answer(io.BytesIO):
        def info(self):
            headers = email.message.Message()
            headers["Content-Length"] = str(len(self.getvalue()))
            return headers

    requests = []

    def urlopen(request, *args, **kwargs):
        requests.append(request)
        return Answer(file.read_bytes())

    monkeypatch.setattr(urllib.request, "urlopen", urlopen)
    monkeypatch.setattr(torch.hub, "urlopen", urlopen)
    monkeypatch.setenv("TORCH_HOME", str(tmp_path / "home"))
    monkeypatch.setattr(torch.hub, "_hub_dir", None)
    return file_hash(file), requests


def test_an_address_is_downloaded_once_and_checked_every_time(server, tmp_path):
    digest, requests = server
    for address in (
        f"https://host/w.safetensors#sha256={digest}",
        f"https://host/w-{digest[:8]}.pt",
    ):
        for _ in range(2):
            load_weights(AOGNet(TINY), address)
    assert len(requests) == 2
    cached = next((tmp_path / "home").rglob("*w.safetensors"))
    cached.write_bytes(cached.read_bytes()[:-1] + b"\1")
    with pytest.raises(WeightError, match="was changed"):
        load_weights(AOGNet(TINY), f"https://host/w.safetensors#sha256={digest}")


@pytest.mark.parametrize(
    ("address", "says"),
    (
        ("https://host/w.pth", "no hash to check"),
        ("https://host/w.pth#sha256=" + "0" * 64, "does not have the SHA-256"),
        ("http://host/w-01234567.pth", "https"),
        ("s3://host/w-01234567.pth", "https"),
        ("torchvision://resnet51", "resnet51"),
        ("torchvision://resnet50.v7", "v7.*IMAGENET1K_V2"),
    ),
)
def test_an_address_is_refused_in_a_sentence(server, address, says):
    with pytest.raises(WeightError, match=says):
        load_weights(AOGNet(TINY), address)


def test_torchvision_s_names_are_addresses(server):
    requests = server[1]
    with pytest.raises(
        WeightError, match="does not have the SHA-256"
    ):  # the server has one file only
        load_weights(DGNet("dgnet_r50"), "torchvision://resnet50")
    assert requests[0].full_url == models.ResNet50_Weights.IMAGENET1K_V1.url


def test_a_deeper_network_s_file_names_the_deeper_model_alone():
    """Bug: the message named the network that had just refused the file."""
    with torch.device("meta"):
        deeper = models.resnet34().state_dict()
    state = {name: torch.zeros(value.shape, dtype=value.dtype) for name, value in deeper.items()}
    with pytest.raises(WeightError, match="left over: layer1.2.*its tensors fit dgnet_r34$"):
        load_weights(DGNet("dgnet_r18"), state)


def hash_bomb(folder):
    """A key of tuples in tuples: hashing it would take 2**60 steps."""
    nested = b"K\x01\x85q\x00" + b"".join(b"h%c\x86q%c" % (n, n + 1) for n in range(60))
    (folder / "f.pkl").write_bytes(b"\x80\x02}" + nested + b"K\x01s.")
    return folder / "f.pkl"


def repeated_array(folder):
    """One array under many names, which was copied for each of them."""
    array = np.zeros(1 << 10, dtype=np.float32)
    content = {"model": {f"w{n}": array for n in range(1 << 10)}}
    (folder / "f.pkl").write_bytes(pickle.dumps(content, protocol=2))
    return folder / "f.pkl"


def lying_storage(folder, **options):
    """A storage of four elements that claims more than two billion."""
    torch.save({"w": torch.zeros(4)}, folder / "f.pth", **options)
    data = (folder / "f.pth").read_bytes()
    at = data.index(b"K\x04", data.index(b"cpu"))
    data = data[:at] + b"J\xff\xff\xff\x7f" + data[at + 2 :]
    if not options:
        with (
            zipfile.ZipFile(folder / "f.pth") as plain,
            zipfile.ZipFile(folder / "g.pth", "w") as lying,
        ):
            for name in plain.namelist():
                content = plain.read(name)
                claim = content.replace(b"K\x04tq\x07", b"J\xff\xff\xff\x7ftq\x07")
                lying.writestr(name, claim)
        return folder / "g.pth"
    (folder / "f.pth").write_bytes(data)
    return folder / "f.pth"


def test_a_legacy_torch_file_has_the_bound_of_the_others(tmp_path):
    """Bug: a torch file of before 1.6 could claim any amount of memory."""
    for options in ({}, {"_use_new_zipfile_serialization": False}):
        with pytest.raises(WeightError, match="claims 8589934588 bytes for tensor"):
            read_weight_file(lying_storage(tmp_path, **options))


def test_keys_that_would_take_forever_are_refused(tmp_path):
    """Bug: reading a file of 300 bytes did not end."""
    with pytest.raises(WeightError, match="a tuple as a key"):
        read_weight_file(hash_bomb(tmp_path))


def test_an_array_under_many_names_is_in_memory_once(tmp_path):
    """Bug: each name had a copy, so that a small file took any amount of memory."""
    tensors = read_weight_file(repeated_array(tmp_path)).tensors
    assert len({tensor.data_ptr() for tensor in tensors.values()}) == 1


def test_hostile_files_are_refused_and_run_nothing(tmp_path):
    """A sample; tests/reliability/check_weight_files.py takes them all."""
    mark = tmp_path / "mark"
    for name, file in islice(write_exploits(tmp_path, str(mark)), 0, None, 40):
        with pytest.raises(WeightError):
            read_weight_file(file)
        assert not mark.exists(), name
