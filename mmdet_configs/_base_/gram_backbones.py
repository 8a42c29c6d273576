# Registers the backbones. The one place for custom_imports: a config of your own that sets it too
# replaces this, and must name 'gram_backbones.mmdet' itself.
custom_imports = dict(imports=["gram_backbones.mmdet"], allow_failed_imports=False)
# As the configs for Detectron2 have it; without a seed a resumed run does not repeat.
randomness = dict(seed=0)
