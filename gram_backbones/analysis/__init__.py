"""Looking at networks: grammars, connectivity, cost, and what single nodes contribute.

Takes ``pip install gram-backbones[analysis]``. No module here knows a detection framework: the
command lines load detectors and pass their backbones in.
"""
