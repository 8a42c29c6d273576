#!/usr/bin/env python
"""gram-backbones train, for MMDetection alone: gram_backbones/cli/mmdet.py."""

from gram_backbones.cli.mmdet import train as main

if __name__ == "__main__":
    main()
