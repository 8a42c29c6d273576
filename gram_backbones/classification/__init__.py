"""Training and evaluating classifiers: the papers' recipes on timm, torchvision and torch DDP.

`recipes` holds the numbers, `data` the images, `building` what a run is made of, `engine` the
loops, `checkpoint` the files and `processes` the start under torchrun.
`tools/train_classifier.py` is the command line.
"""

try:
    import timm  # noqa: F401
    import tqdm  # noqa: F401
except ImportError as error:
    raise ImportError(
        f"gram_backbones.classification needs timm 1.0 and tqdm ({error}): "
        "pip install 'timm>=1.0' tqdm"
    ) from error
