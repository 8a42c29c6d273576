#!/usr/bin/env python
"""The command gram-backbones export: see gram_backbones/cli/export.py."""

from gram_backbones.cli.export import main

if __name__ == "__main__":
    main()
