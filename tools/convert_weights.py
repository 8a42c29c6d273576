#!/usr/bin/env python
"""The command gram-backbones convert: see gram_backbones/cli/convert.py."""

from gram_backbones.cli.convert import main

if __name__ == "__main__":
    main()
