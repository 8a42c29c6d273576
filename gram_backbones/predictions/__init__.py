"""What `gram-backbones predict` reads and writes; the detectors are in `d2/` and `mmdet/`."""
