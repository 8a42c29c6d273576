#!/usr/bin/env python
"""The command gram-backbones robustness: see gram_backbones/cli/robustness.py."""

from gram_backbones.cli.robustness import main

if __name__ == "__main__":
    main()
