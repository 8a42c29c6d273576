"""What a run of Detectron2 needs before it starts: device, log, saved config, seed, threads."""

from __future__ import annotations

import logging
import os
import re
import time
from pathlib import Path

import detectron2
import torch
from detectron2.config import CfgNode, get_cfg
from detectron2.data import MetadataCatalog
from detectron2.engine import HookBase
from detectron2.utils import comm
from detectron2.utils.collect_env import collect_env_info
from detectron2.utils.env import seed_all_rng
from detectron2.utils.events import CommonMetricPrinter
from detectron2.utils.logger import setup_logger

from .. import __version__
from ..run_record import RunRecord, config_changes, installed_versions
from ..threads import choose_threads, keep_kernels
from ..upstream_warnings import silence_known_warnings
from ..weights.checkpoints import end_run_without_disk
from .config import add_gram_backbones_config

logger = logging.getLogger(__name__)

_LOGGERS = ("detectron2", "fvcore", "gram_backbones")  # fvcore's says what was loaded
_QUIET_SECONDS = 10  # longest time without a line during training, if iterations are shorter


def on_available_device(cfg: CfgNode) -> CfgNode:
    """The config, or a copy that runs on the CPU where it asks for a GPU and there is none."""
    if not cfg.MODEL.DEVICE.startswith("cuda") or torch.cuda.is_available():
        return cfg
    frozen, cfg = cfg.is_frozen(), cfg.clone()
    cfg.defrost()
    cfg.MODEL.DEVICE = "cpu"
    if frozen:
        cfg.freeze()
    logger.warning("No GPU found: running on the CPU.")  # on stderr, as long as there is no log
    return cfg


def start_run(cfg: CfgNode, *, evaluates: bool = False) -> CfgNode:
    """Start a run's log; save its config and ``run.json`` in ``OUTPUT_DIR``; seed the host.

    Lines go to the terminal, unless the user's own handlers take them, and to
    ``OUTPUT_DIR/log.txt``. ``VERBOSE`` adds versions, the whole config and the model's modules. A
    ``SEED`` of at least 0 seeds everything, so call this before the model is built.

    Args:
        cfg: config of the run.
        evaluates: whether the run only evaluates. Then the config of a training in the same folder
            stays; this one's goes to ``inference/`` there.

    Returns:
        The config for the devices that there are: `on_available_device`.
    """
    silence_known_warnings()
    keep_kernels()
    log_to(cfg.OUTPUT_DIR)
    if line := choose_threads(comm.get_local_size()):
        logger.info(line)
    cfg = on_available_device(cfg)
    versions = torch.__version__, detectron2.__version__
    logger.info("torch %s, detectron2 %s, on %s", *versions, cfg.MODEL.DEVICE)
    if cfg.get("VERBOSE"):
        logger.info("Environment info:\n%s", collect_env_info())
        logger.info("Config:\n%s", cfg.dump())
    if cfg.OUTPUT_DIR and comm.is_main_process():
        path = Path(cfg.OUTPUT_DIR, "config.yaml")
        if evaluates and path.exists():
            path = Path(cfg.OUTPUT_DIR, "inference", "config.yaml")
            path.parent.mkdir(exist_ok=True)
        path.write_text(cfg.dump())
        _record_run(cfg).write(str(path.parent))
        logger.info("Saved the config to %s", path)
    if cfg.SEED >= 0:
        seed_all_rng(cfg.SEED + comm.get_rank())
    return cfg


def _record_run(cfg: CfgNode) -> RunRecord:
    defaults = get_cfg()
    add_gram_backbones_config(defaults)
    found = {name: MetadataCatalog.get(name) for name in cfg.DATASETS.TEST}
    places = {name: (data.get("json_file"), data.get("image_root")) for name, data in found.items()}
    return RunRecord(
        versions=installed_versions(gram_backbones=__version__, detectron2=detectron2.__version__),
        device=cfg.MODEL.DEVICE,
        seed=cfg.SEED if cfg.SEED >= 0 else None,
        weights=cfg.MODEL.WEIGHTS,
        iterations=cfg.SOLVER.MAX_ITER,
        datasets={
            name: (os.path.abspath(json_file), os.path.abspath(root))
            for name, (json_file, root) in places.items()
            if json_file and root and "://" not in f"{json_file}{root}"
        },
        base="Detectron2's defaults",
        changes=config_changes(defaults, cfg),
    )


def log_to(folder: str) -> None:
    """Print the log, and append it to ``log.txt`` in a folder, in place of an earlier run's.

    Processes of other ranks write ``log.txt.rank1`` and so on.
    """
    rank = comm.get_rank()
    name = f"log.txt.rank{rank}" if rank else "log.txt"
    file = None
    if folder:
        Path(folder).mkdir(parents=True, exist_ok=True)
        file = _RunLog(Path(folder, name))
    for name in _LOGGERS:
        log = logging.getLogger(name)
        for handler in [h for h in log.handlers if isinstance(h, _RunLog)]:
            log.removeHandler(handler)
            handler.close()
        if not (log.isEnabledFor(logging.INFO) and log.hasHandlers()):  # the user has set up none
            setup_logger(distributed_rank=rank, name=name)
        if file and not _writes(log, file.baseFilename):
            log.addHandler(file)


class _RunLog(logging.FileHandler):
    """Detectron2's lines without the colours of tables and warnings, which a file cannot show."""

    def __init__(self, path: Path):
        super().__init__(path, delay=True)
        line = "[%(asctime)s] %(name)s %(levelname)s: %(message)s"
        end_run_without_disk(self)
        self.setFormatter(logging.Formatter(line, datefmt="%m/%d %H:%M:%S"))

    def format(self, record: logging.LogRecord) -> str:
        return re.sub(r"\x1b\[[0-9;]*m", "", super().format(record))


def _writes(log: logging.Logger, path: str) -> bool:
    """Whether a handler of Detectron2's ``default_setup`` writes to this file already."""
    streams = [getattr(handler, "stream", None) for handler in log.handlers]
    names = [getattr(stream, "name", None) for stream in streams]
    return path in [os.path.abspath(name) for name in names if isinstance(name, str)]


class EarlyProgressHook(HookBase):
    """Prints losses and the time left when Detectron2 does not yet: it waits for 20 iterations.

    Lines come after the first two iterations, the second with an estimate of the time left, and
    whenever ten seconds have passed since the last.

    Args:
        max_iter: last iteration.
        period: of Detectron2's own lines, in iterations.
    """

    def __init__(self, max_iter: int, period: int = 20):
        self._printer = CommonMetricPrinter(max_iter)
        self._period = period
        self._last = time.monotonic()

    def after_step(self) -> None:
        """Print a line if one is due."""
        trainer, now = self.trainer, time.monotonic()
        done = trainer.iter + 1
        own = done % self._period == 0 or done == trainer.max_iter
        if own or done - trainer.start_iter <= 2 or now - self._last > _QUIET_SECONDS:
            self._last = now
            if not own:
                self._printer.write()
