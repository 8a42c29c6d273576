#!/usr/bin/env python
"""The command gram-backbones metrics: see gram_backbones/cli/metrics.py."""

from gram_backbones.cli.metrics import main

if __name__ == "__main__":
    main()
