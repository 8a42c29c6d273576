"""``python -m gram_backbones``: the command line `gram_backbones.cli`."""

from .cli import main

if __name__ == "__main__":
    main()
