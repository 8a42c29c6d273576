"""Networks as files for other runtimes: ONNX and torch.export, with any batch and image size.

A file counts when it has computed what the network computes, at three sizes; only then does it
stand under its name.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

import torch
from torch import Tensor

from .atomic import replacing
from .staged import StagedBackbone

# Batch, height and width in strides of the deepest stage. The example is none of them.
_EXAMPLE = (2, 3, 4)
_CHECKED = ((1, 2, 2), (3, 2, 5), (2, 6, 3))
TOLERANCE = 1e-4


def export_network(
    model: StagedBackbone,
    path: str | Path,
    *,
    tolerance: float = TOLERANCE,
    aot_inductor: bool = False,
) -> float:
    """Write a network as ``.onnx`` or ``.pt2``, and check the file against the network.

    Images are ``(B, 3, H, W)``, prepared as for the network, with any B, H and W from two strides
    of the deepest stage on. Outputs are the features by name, or the logits. A DG-Net is exported
    in its plain form: every edge is computed, weighted anew for each image.

    Args:
        model: a network with ``deploy``, deployed or not; evaluation mode is used.
        path: its ending says the format: ``.onnx`` (checked with onnxruntime) or ``.pt2``
            (torch.export).
        tolerance: largest relative error that is allowed.
        aot_inductor: a ``.pt2`` is a package compiled for this machine by AOTInductor, to be loaded
            with ``torch._inductor.aoti_load_package``.

    Returns:
        The largest relative error found.

    Raises:
        ValueError: another ending, or the file computes something else; then no file is left.
        ImportError: ``.onnx`` without the packages of the extra ``export``.
    """
    path = Path(path)
    if path.suffix not in _WRITERS:
        raise ValueError(f"path is {path}; allowed endings are {tuple(_WRITERS)}")
    if aot_inductor and path.suffix != ".pt2":
        raise ValueError(f"path is {path}; a package of AOTInductor ends in '.pt2'")
    write = _write_package if aot_inductor else _WRITERS[path.suffix]
    training = model.training
    model.eval()
    try:
        with torch.no_grad(), replacing(path) as unfinished:
            run = write(model, unfinished)
            error = float(torch.tensor([_error(model, run, size) for size in _CHECKED]).max())
            if not error <= tolerance:
                raise ValueError(
                    f"{path.name} differs from the network by {error:.1e}, allowed is "
                    f"{tolerance:.0e}; it was not written"
                )
    finally:
        model.train(training)
    return error


def _images(model: StagedBackbone, size: Sequence[int]) -> Tensor:
    batch, height, width = size
    place = next(iter(model.state_dict().values()))
    stride = model.size_divisibility
    generator = torch.Generator().manual_seed(batch)
    images = torch.randn(batch, 3, height * stride, width * stride, generator=generator)
    # Each of another colour: a DG-Net opens other edges for each.
    images += 1.5 * torch.randn(batch, 3, 1, 1, generator=generator)
    return images.to(place.device, place.dtype)


def _by_name(output: dict[str, Tensor] | Sequence[Tensor] | Tensor) -> dict[str, Tensor]:
    if isinstance(output, dict):
        return output
    outputs = [output] if isinstance(output, Tensor) else output
    return {f"output{k}": tensor for k, tensor in enumerate(outputs)}


def _error(
    model: StagedBackbone, run: Callable[[Tensor], Sequence[Tensor]], size: Sequence[int]
) -> float:
    images = _images(model, size)
    wanted = _by_name(model(images)).values()
    errors = []
    for name, (a, b) in enumerate(zip(run(images), wanted, strict=True)):
        if a.shape != b.shape:
            raise ValueError(
                f"output {name} is {tuple(a.shape)}; the network's is {tuple(b.shape)}"
            )
        errors.append((a - b).norm() / b.norm())
    return float(torch.stack(errors).max())  # not a number if one is not


def _dynamic(model: StagedBackbone) -> tuple[dict[int, object], ...]:
    any_size = torch.export.Dim.AUTO
    return ({0: torch.export.Dim("batch", min=1), 2: any_size, 3: any_size},)


def _exported(model: StagedBackbone) -> torch.export.ExportedProgram:
    example = (_images(model, _EXAMPLE),)
    return torch.export.export(model, example, dynamic_shapes=_dynamic(model))


def _write_package(model: StagedBackbone, path: Path) -> Callable[[Tensor], Sequence[Tensor]]:
    package = path.with_name(path.name + ".pt2")  # the only ending that it takes
    torch._inductor.aoti_compile_and_package(_exported(model), package_path=str(package))
    package.replace(path)
    with path.open("rb") as file:
        loaded = torch._inductor.aoti_load_package(file)
    return lambda images: list(_by_name(loaded(images)).values())


def _write_program(model: StagedBackbone, path: Path) -> Callable[[Tensor], Sequence[Tensor]]:
    program = _exported(model)
    with path.open("wb") as file:
        torch.export.save(program, file)
    with path.open("rb") as file:
        loaded = torch.export.load(file).module()
    return lambda images: list(_by_name(loaded(images)).values())


def _write_onnx(model: StagedBackbone, path: Path) -> Callable[[Tensor], Sequence[Tensor]]:
    try:
        import onnxruntime
        import onnxscript  # noqa: F401 (torch's exporter asks for it)
    except ImportError as error:
        raise ImportError(
            f"ONNX files take the extra 'export' ({error}): pip install 'gram-backbones[export]'"
        ) from error

    example = _images(model, _EXAMPLE)
    torch.onnx.export(
        model,
        (example,),
        str(path),
        dynamo=True,
        external_data=False,
        dynamic_shapes=_dynamic(model),
        input_names=["images"],
        output_names=list(_by_name(model(example))),
        verbose=False,
    )
    session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])

    def run(images: Tensor) -> list[Tensor]:
        return [torch.from_numpy(a) for a in session.run(None, {"images": images.cpu().numpy()})]

    return run


_WRITERS = {".onnx": _write_onnx, ".pt2": _write_program}
