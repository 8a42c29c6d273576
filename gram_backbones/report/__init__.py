"""A training run as one HTML page. Takes ``pip install gram-backbones[analysis]``."""
