#!/usr/bin/env python
"""The command gram-backbones cost: see gram_backbones/cli/cost.py."""

from gram_backbones.cli.cost import main

if __name__ == "__main__":
    main()
