"""DG-Net outside of plain eager mode: traced, exported, compiled, transformed, without memory.

Edges are decided image by image. What is traced with one image must decide anew for the next.
"""

import copy

import pytest
import torch
from torch import nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.func import functional_call
from torch.fx.experimental.proxy_tensor import make_fx

from gram_backbones import DGNet, list_models
from gram_backbones.dgnet.rewire import rewire
from gram_backbones.flops import count_conv_flops
from tests.dgnet.open_edges import (
    GRADIENTS,
    SMALL,
    check_close,
    edges_differ,
    leaves_out_blocks,
    settle,
    small_network,
)

pytestmark = pytest.mark.filterwarnings(
    "ignore::torch.jit.TracerWarning",
    "ignore:`torch.jit.trace.*` is deprecated:FutureWarning",
    "ignore:torch.ao.quantization is deprecated:DeprecationWarning",
    "ignore:.*quantized tensor creation functions:UserWarning",
    "ignore:You are using the legacy TorchScript-based ONNX export:DeprecationWarning",
    "ignore:The feature will be removed:DeprecationWarning",
)


TWO_KINDS = pytest.mark.parametrize(
    "kind", ("basic", pytest.param("inverted", marks=pytest.mark.slow))
)


def check_follows_the_edges(run, model, images):
    """Fail unless ``run`` computes what ``model`` does, for images with edges of their own."""
    with torch.no_grad():
        for image in images:
            check_close(run(image), model(image))


@pytest.mark.grid
@GRADIENTS
@pytest.mark.parametrize("kind", SMALL)
def test_a_traced_network_decides_its_edges_anew(kind, grad):
    model, images = small_network(kind)
    with torch.set_grad_enabled(grad):
        traced = torch.jit.trace(model, images[0])
    check_follows_the_edges(traced, model, images)


def test_a_traced_network_takes_other_batches_and_sizes():
    model, images = small_network()
    traced = torch.jit.trace(model, images[0])
    check_follows_the_edges(traced, model, [torch.cat(images)])
    check_follows_the_edges(traced, model, [image[..., :40, :56] for image in images])


@pytest.mark.grid
@GRADIENTS
@pytest.mark.parametrize("kind", SMALL)
def test_an_exported_network_decides_its_edges_anew(kind, grad):
    model, images = small_network(kind)
    with torch.set_grad_enabled(grad):
        exported = torch.export.export(model, (images[0],)).module()
    check_follows_the_edges(exported, model, images)


@pytest.mark.slow
def test_an_exported_network_takes_any_batch():
    model, images = small_network()
    batch = {0: torch.export.Dim("batch", min=1, max=64)}
    example = (torch.cat(images[:2]),)
    exported = torch.export.export(model, example, dynamic_shapes=(batch,)).module()
    check_follows_the_edges(exported, model, [torch.cat(images), *images])


@pytest.mark.slow
def test_an_exported_classifier_decides_its_edges_anew():
    model, images = small_network(num_classes=5)
    check_follows_the_edges(torch.export.export(model, (images[0],)).module(), model, images)


def run_onnx(path):
    """A function that runs an ONNX file on an image and returns its outputs."""
    session = pytest.importorskip("onnxruntime").InferenceSession(
        str(path), providers=["CPUExecutionProvider"]
    )
    (given,) = session.get_inputs()

    def run(image):
        return [torch.from_numpy(a) for a in session.run(None, {given.name: image.numpy()})]

    return run


@pytest.mark.slow
@pytest.mark.parametrize("exporter", ("dynamo", "torchscript", "torchscript_grad"))
@TWO_KINDS
def test_an_onnx_file_decides_its_edges_anew(kind, exporter, tmp_path):
    dynamo = exporter == "dynamo"
    pytest.importorskip("onnxscript" if dynamo else "onnx")
    model, images = small_network(kind)
    path = tmp_path / "model.onnx"
    with torch.set_grad_enabled(exporter == "torchscript_grad"):
        torch.onnx.export(model, (images[0],), path, dynamo=dynamo, verbose=False)
    check_follows_the_edges(run_onnx(path), model, images)


@pytest.mark.slow
@pytest.mark.grid
@GRADIENTS
@pytest.mark.parametrize("pre_dispatch", (False, True))
def test_make_fx_decides_the_edges_anew(pre_dispatch, grad):
    model, images = small_network()
    with torch.set_grad_enabled(grad):
        traced = make_fx(model, pre_dispatch=pre_dispatch)(images[0])
    check_follows_the_edges(traced, model, images)


@pytest.mark.grid
@pytest.mark.parametrize("backend", ("eager", "aot_eager"))
@TWO_KINDS
def test_a_compiled_network_is_one_graph(kind, backend):
    model, images = small_network(kind)
    torch._dynamo.reset()
    compiled = torch.compile(model, fullgraph=True, backend=backend)
    check_follows_the_edges(compiled, model, images)


@pytest.mark.slow
def test_a_compiled_classifier_is_one_graph():
    model, images = small_network(num_classes=5)
    torch._dynamo.reset()
    compiled = torch.compile(model, fullgraph=True, backend="eager")
    check_follows_the_edges(compiled, model, images)


@pytest.mark.slow
@pytest.mark.grid
@pytest.mark.parametrize("backend", ("eager", "aot_eager"))
def test_a_compiled_network_trains_as_one_graph(backend):
    model, images = small_network()
    model.train()
    twin = copy.deepcopy(model)
    torch._dynamo.reset()
    x = torch.cat(images)
    outputs = [net(x) for net in (torch.compile(model, fullgraph=True, backend=backend), twin)]
    check_close(*outputs)
    gradients = [
        torch.autograd.grad(
            sum(feature.square().mean() for feature in out),
            list(net.parameters()),
            allow_unused=True,
            materialize_grads=True,
        )
        for out, net in zip(outputs, (model, twin))
    ]
    check_close(*gradients)


@GRADIENTS
def test_a_symbolic_trace_decides_its_edges_anew(grad):
    model, images = small_network()
    with torch.set_grad_enabled(grad):
        traced = torch.fx.symbolic_trace(model, concrete_args={"valid_sizes": None})
    check_follows_the_edges(traced, model, images)


def rewired():
    """The small network as :func:`rewire` makes it of its layers, and its images."""
    source, images = small_network()
    stem = (source.conv1, source.bn1, source.relu, source.maxpool)
    network = nn.Sequential(*stem, source.layer1, source.layer2)
    model = rewire(network, ("4", "5"), images[0]).eval()
    for stage, graph in zip(model[4:], source.graphs.values()):
        stage.graph.load_state_dict(graph.state_dict())
    assert edges_differ(model, images)
    return model, images


@pytest.mark.slow
@pytest.mark.grid
@pytest.mark.parametrize("capture", ("jit", "export", "fx"))
def test_a_rewired_network_decides_its_edges_anew(capture):
    model, images = rewired()
    with torch.no_grad():
        if capture == "jit":
            run = torch.jit.trace(model, images[0])
        elif capture == "export":
            run = torch.export.export(model, (images[0],)).module()
        else:
            run = torch.fx.symbolic_trace(model)
    check_follows_the_edges(run, model, images)


def export(model, image):
    torch.export.export(model, (image,))


def run_on_fake_tensors(model, image):
    with FakeTensorMode(allow_non_fake_inputs=True) as mode:
        model(mode.from_tensor(image))


def run_under_another_device(model, image):
    with torch.device("meta"):
        model(image)


@pytest.mark.slow
@pytest.mark.grid
@pytest.mark.parametrize("before", (export, run_on_fake_tensors, run_under_another_device))
def test_no_earlier_pass_reaches_later_inference(before):
    """Whatever memory the earlier pass allocates, of a larger image, the later one has its own."""
    model, images = small_network()
    wanted = [feature.detach() for feature in model(images[1])]
    with torch.no_grad():
        try:
            before(copy.deepcopy(model), torch.randn(1, 3, 160, 160))
        except Exception as error:  # other tests ask whether it works
            print(error)
        check_close(model(images[1]), wanted)


@pytest.mark.grid
@GRADIENTS
@pytest.mark.parametrize("training", (False, True), ids=("eval", "train"))
@pytest.mark.parametrize("place", ("meta", "fake"))
def test_shapes_come_without_memory(place, training, grad):
    mode = torch.device("meta") if place == "meta" else FakeTensorMode()
    with mode, torch.set_grad_enabled(grad):
        for kind, variant in SMALL.items():
            model = DGNet(variant, out_features=("res2", "res5")).train(training)
            features = model(torch.empty(2, 3, 64, 64), valid_sizes=[(64, 64), (40, 30)])
            for name, feature in features.items():
                side = 64 // model.feature_strides[name]
                assert feature.shape == (2, model.feature_channels[name], side, side), kind


@pytest.mark.grid
@pytest.mark.parametrize("set_default", (False, True), ids=("context", "set_default_device"))
@pytest.mark.parametrize("mode", ("no_grad", "grad", "train"))
def test_a_model_may_live_elsewhere_than_new_tensors(mode, set_default):
    """A CPU model under another default device, with images that do without some nodes."""
    model, images = small_network()
    model.train(mode == "train")
    x = torch.cat(images)
    sizes = [(64, 64), (64, 50), (30, 64), (20, 20)]
    with torch.set_grad_enabled(mode != "no_grad"):
        wanted = copy.deepcopy(model)(x, valid_sizes=sizes)
        if set_default:
            torch.set_default_device("meta")
            try:
                got = model(x, valid_sizes=sizes)
            finally:
                torch.set_default_device(None)
        else:
            with torch.device("meta"):
                got = model(x, valid_sizes=sizes)
    check_close(got, wanted)


def functional_loss(model):
    """The network's loss as a function of its parameters and one batch; buffers stay."""
    buffers = dict(model.named_buffers())

    def loss(parameters, x):
        return sum(
            feature.square().mean((1, 2, 3)).sum()
            for feature in functional_call(model, (parameters, buffers), (x,))
        )

    return loss


def gated_as(mode):
    """A small network in double precision, its graphs in a mode and BN with fixed statistics."""
    model, images = small_network()
    for graph in model.graphs.values():
        graph.train(mode == "train")
    parameters = {name: p.detach() for name, p in model.double().named_parameters()}
    return model, parameters, torch.cat(images).double()


def autograd_gradients(model, x):
    loss = functional_loss(model)(dict(model.named_parameters()), x)
    named = dict(model.named_parameters())
    options = dict(allow_unused=True, materialize_grads=True)
    return dict(zip(named, torch.autograd.grad(loss, list(named.values()), **options)))


MODES = pytest.mark.parametrize("mode", ("eval", "train"))


@MODES
def test_func_grad(mode):
    model, parameters, x = gated_as(mode)
    wanted = autograd_gradients(model, x)
    got = torch.func.grad(functional_loss(model))(parameters, x)
    assert any(g.any() for name, g in wanted.items() if "routers" in name)
    check_close(list(got.values()), [wanted[name] for name in got])


@MODES
def test_vmap_over_images(mode):
    model, parameters, x = gated_as(mode)
    buffers = dict(model.named_buffers())
    got = torch.vmap(lambda image: functional_call(model, (parameters, buffers), (image[None],)))(x)
    with torch.no_grad():
        check_close([feature[:, 0] for feature in got], model(x))


@MODES
def test_gradients_image_by_image(mode):
    model, parameters, x = gated_as(mode)
    per_image = torch.vmap(torch.func.grad(functional_loss(model)), in_dims=(None, 0))
    got = per_image(parameters, x[:, None])
    for b, image in enumerate(x.split(1)):
        wanted = autograd_gradients(model, image)
        check_close([g[b] for g in got.values()], [wanted[name] for name in got])


@MODES
def test_jvp(mode):
    """The derivative along a direction is the gradient's inner product with it."""
    model, parameters, x = gated_as(mode)
    direction = torch.randn_like(x)
    x.requires_grad_()
    loss = functional_loss(model)
    (gradient,) = torch.autograd.grad(loss(parameters, x), x)
    _, along = torch.func.jvp(lambda x: loss(parameters, x), (x.detach(),), (direction,))
    check_close(along, (gradient * direction).sum())


def test_dynamic_quantisation_reaches_the_routers():
    model = settle(DGNet(SMALL["basic"], num_classes=5)).eval()
    small = torch.ao.quantization.quantize_dynamic(model, {nn.Linear}, dtype=torch.qint8)
    quantised = torch.ao.nn.quantized.dynamic.Linear
    routers = [router for graph in small.graphs.values() for router in graph.routers]
    assert routers and all(isinstance(router, quantised) for router in routers)
    ran = []
    for router in routers:
        router.register_forward_hook(lambda module, _args, _out: ran.append(module))
    x = torch.randn(2, 3, 64, 64)
    with torch.no_grad():
        got, wanted = small(x), model(x)
    assert (got - wanted).norm() < 0.05 * wanted.norm()
    assert set(ran) == set(routers)


def test_fvcore_counts_every_edge():
    counter = pytest.importorskip("fvcore.nn").FlopCountAnalysis
    model, images = small_network("bottleneck")
    everything = count_conv_flops(DGNet(SMALL["bottleneck"], out_indices=(1, 2)).eval(), 64)
    for image in images[:2]:
        with torch.no_grad():
            counted = counter(model, image).unsupported_ops_warnings(False)
            assert counted.by_operator()["conv"] == everything


@pytest.mark.slow
def test_mmengine_s_complexity_tool():
    tool = pytest.importorskip("mmengine.analysis").get_model_complexity_info
    model, images = small_network("bottleneck")
    with torch.no_grad():
        counted = tool(model, inputs=(images[0],), show_table=False, show_arch=False)
    everything = count_conv_flops(DGNet(SMALL["bottleneck"], out_indices=(1, 2)).eval(), 64)
    assert counted["flops"] >= everything
    assert counted["params"] == sum(p.numel() for p in model.parameters())


@pytest.mark.slow
@pytest.mark.grid
@pytest.mark.parametrize("edges", ("static", "er", "chain"))
def test_fixed_edges_trace_and_export(edges):
    model, images = small_network(edges=edges)
    with torch.no_grad():
        check_follows_the_edges(torch.jit.trace(model, images[0]), model, images)
        exported = torch.export.export(model, (images[0],)).module()
    check_follows_the_edges(exported, model, images)


@GRADIENTS
def test_skipping_is_an_optimisation_only(grad):
    """Images that leave blocks out, and the same weights with every block computed."""
    model, images = small_network()
    model.double()
    x = torch.cat(images).double()
    assert leaves_out_blocks(model, [x])
    with torch.set_grad_enabled(grad):
        got = model(x)
        plain = torch.vmap(lambda image: model(image[None]))(x)
    for a, b in zip(got, plain):
        torch.testing.assert_close(a, b[:, 0], rtol=1e-6, atol=1e-6 * b.std().item())


@pytest.mark.slow
@pytest.mark.parametrize(
    "name", ("dgnet_cifar_r20", "dgnet_r50", "dgnet_mobilenet_v2", *list_models("dgnet_*_600m"))
)
def test_every_kind_of_block_traces_and_exports(name, tmp_path):
    size = 32 if "cifar" in name else 64
    model, images = small_network(name, size=size, num_classes=10)
    with torch.no_grad():
        check_follows_the_edges(torch.jit.trace(model, images[0]), model, images)
        exported = torch.export.export(model, (images[0],))
        check_follows_the_edges(exported.module(), model, images)
        pytest.importorskip("onnxscript")
        for dynamo, given in ((True, exported), (False, model)):
            path = tmp_path / f"{dynamo}.onnx"
            args = () if dynamo else (images[0],)
            torch.onnx.export(given, args, path, dynamo=dynamo, verbose=False)
            check_follows_the_edges(run_onnx(path), model, images)
