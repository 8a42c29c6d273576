#!/usr/bin/env python
"""The command gram-backbones demo-data: see gram_backbones/cli/demo_data.py."""

from gram_backbones.cli.demo_data import main

if __name__ == "__main__":
    main()
