"""``python -m gram_backbones configs`` prints the folders of the configs, ``models`` the models.

``configs d2`` and ``configs mmdet`` print the folder of one framework.
"""

import argparse

from .config_folders import FRAMEWORKS, config_dirs

if __name__ == "__main__":
    parser = argparse.ArgumentParser(prog="python -m gram_backbones", description=__doc__)
    parser.add_argument("what", choices=["configs", "models"])
    parser.add_argument("framework", nargs="?", choices=FRAMEWORKS)
    args = parser.parse_args()
    if args.what == "configs":
        lines = config_dirs([args.framework] if args.framework else FRAMEWORKS)
    else:
        from .registry import list_models  # needs torch, which takes seconds to import

        lines = list_models()
    print("\n".join(map(str, lines)))
