# Registers the backbones. The one place for custom_imports: a config of your own that sets it too
# replaces this, and must name 'gram_backbones.mmdet' itself.
custom_imports = dict(imports=["gram_backbones.mmdet"], allow_failed_imports=False)
