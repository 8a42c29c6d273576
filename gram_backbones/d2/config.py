"""Config nodes of the backbones, and the configs that come with the package."""

from __future__ import annotations

from detectron2.config import CfgNode, get_cfg

from ..config_folders import config_dirs


def add_gram_backbones_config(cfg: CfgNode) -> None:
    """Add our backbones' and trainer's keys to a Detectron2 config; repeating is safe."""
    if "AOGNET" in cfg.MODEL:
        return
    node = cfg.MODEL.AOGNET = CfgNode()
    node.VARIANT = "aognet_40m_released"
    node.OUT_FEATURES = ["res2", "res3", "res4", "res5"]
    # A norm of Detectron2's get_norm, or "GN" with as many groups (up to 32) as divide the width.
    node.NORM = "FrozenBN"
    node.DROPOUT = 0.0
    node.WITH_CP = False
    node.LEARN_SCALES = False
    # Changes to the variant's row; empty or None keeps what the row says.
    node.WORDS = []
    node.BLOCKS = []
    node.CHANNELS = []
    node.PRUNING = []
    node.LATERAL = None
    node.SCALE_LATERAL_SKIP = None
    node.CONCAT_BY_ID = None

    node = cfg.MODEL.DGNET = CfgNode()
    node.VARIANT = "dgnet_r50"
    node.OUT_FEATURES = ["res2", "res3", "res4", "res5"]
    node.NORM = "FrozenBN"
    node.EDGES = "dynamic"  # or "static", "chain", "er", "ba", "ws"
    node.ROUTER_BIAS = 3.0  # initial, of the edges from a node to the next; SIDE_BIAS: all others
    node.SIDE_BIAS = -3.0
    node.GATE = "straight_through"  # or "soft", "paper"
    node.BLOCK_SHORTCUT = True
    node.WIRING_SEED = 0
    node.WITH_CP = False
    # Start as close to the base network as can still learn, for its pretrained weights;
    # ROUTER_BIAS and SIDE_BIAS then have no effect.
    node.START_AS_BASE = False

    # Pictures of predictions next to the ground truth after an evaluation: how many, and from
    # which score on an instance is drawn.
    cfg.TEST.PICTURES = CfgNode({"NUM": 32, "SCORE_THRESH": 0.5})


def get_config_file(name: str) -> str:
    """Path of a config that comes with the package, for instance ``mask_rcnn_aognet40m_fpn_1x``.

    Raises:
        ValueError: there is no such config.
    """
    known = {path.stem: path for folder in config_dirs(["d2"]) for path in folder.glob("*.yaml")}
    name = name.removesuffix(".yaml")
    if name not in known:
        raise ValueError(f"there is no config named {name!r}; allowed are {sorted(known)}")
    return str(known[name])


def get_config(name: str) -> CfgNode:
    """A Detectron2 config with our nodes and the named config merged into it."""
    cfg = get_cfg()
    add_gram_backbones_config(cfg)
    cfg.merge_from_file(get_config_file(name))
    return cfg
