"""Training and evaluating classifiers: the papers' recipes on timm, torchvision and torch DDP.

`recipes` has the hyperparameters, `data` the images, `building` the model and optimiser, `engine`
the loops, `checkpoint` the files and `processes` the start under torchrun.
`gram_backbones.cli.classifier` is the command line.
"""

try:
    import timm  # noqa: F401
    import tqdm  # noqa: F401
except ImportError as error:
    raise ImportError(
        f"gram_backbones.classification needs timm 1.0.15 or newer and tqdm ({error}): "
        "pip install 'timm>=1.0.15' tqdm"
    ) from error
