"""Detectron2's trainer and predictor with strict weight loading and exact resume."""

from __future__ import annotations

import inspect
import logging
import os
import weakref
from collections.abc import Sequence
from contextlib import AbstractContextManager, suppress
from functools import partial
from typing import Any

import torch
from detectron2.config import CfgNode
from detectron2.data import (
    DatasetMapper,
    Metadata,
    MetadataCatalog,
    build_detection_test_loader,
    build_detection_train_loader,
)
from detectron2.data.common import AspectRatioGroupedDataset
from detectron2.engine import (
    AMPTrainer,
    DefaultPredictor,
    DefaultTrainer,
    HookBase,
    SimpleTrainer,
    TrainerBase,
    create_ddp_model,
)
from detectron2.engine.hooks import PeriodicCheckpointer
from detectron2.evaluation import COCOEvaluator
from detectron2.modeling import build_model
from detectron2.utils import comm
from fvcore.common.history_buffer import HistoryBuffer
from torch import nn

from ..data import PictureError
from ..dgnet.gate_report import report_gates
from ..distributed import end_processes, require_same
from ..divergence import DivergenceError, LossWatch, diverged, first_not_finite, not_finite
from ..fused import deploy
from ..heartbeat import heartbeat
from ..layers import has_fixed_parts
from ..lost_processes import guard_loader
from ..seeding import MODEL, seed_everything
from ..termination import Terminated, Termination
from ..threads import resume_threads
from ..weights.checkpoints import SavingError, naming_last_checkpoint
from .checkpoint import GramCheckpointer
from .datasets import (
    NamingMapper,
    check_annotations,
    check_datasets,
    set_classes,
    skippable,
)
from .pictures import save_pictures
from .replay import (
    ReseedHook,
    build_replayable_train_loader,
    is_replayable,
    training_records,
)
from .runs import EarlyProgressHook, on_available_device, start_run

logger = logging.getLogger(__name__)

HISTORY = 1000  # values of a scalar that a trainer keeps; Detectron2's printers look at 20


class GramTrainer(DefaultTrainer):
    """``DefaultTrainer`` with our checkpointer, exact resume, COCO evaluation and pictures.

    A resumed run ends like one that was not stopped (see `gram_backbones.d2.replay`). This requires
    a ``SEED`` of at least 0 and ``TrainingSampler``; the number of loader workers does not matter.
    Several processes can also train on CPUs.

    The constructor starts the run's log and saves its config (`gram_backbones.d2.runs.start_run`).
    ``train`` loads ``MODEL.WEIGHTS``, unless ``resume_or_load`` or the checkpointer already did::

        cfg = get_cfg()
        add_gram_backbones_config(cfg)
        cfg.merge_from_file(get_config_file("mask_rcnn_aognet40m_fpn_1x"))
        GramTrainer(cfg).train()

    The class names of the data are in ``MODEL.CLASSES`` and in every checkpoint. A picture that
    cannot be read ends the run after the weights were saved; so does SIGTERM, with exit code 143.
    With ``DATALOADER.SKIP_UNREADABLE`` the picture is left out of training, and counted in the log.

    Raises:
        DataError: the annotations have errors, or the classes of the config, a checkpoint or the
            data sets contradict each other.
        DivergenceError: the loss is not finite or explodes, see `gram_backbones.divergence`.
        FileNotFoundError: files of a data set are missing; the message lists the paths.
        PictureError: a picture cannot be read; the message names its path.
        ValueError: a data set is not registered.
    """

    def __init__(self, cfg: CfgNode):
        # Like DefaultTrainer's, except for the checkpointer, which must exist before the hooks, and
        # for device ids, which DDP refuses on CPUs.
        TrainerBase.__init__(self)
        names = self._dataset_names(cfg)
        check_datasets(names)
        cfg = start_run(_with_classes(cfg, names))
        torch.backends.cudnn.benchmark = cfg.CUDNN_BENCHMARK
        warn_about_data(cfg, names)
        cfg = DefaultTrainer.auto_scale_workers(cfg, comm.get_world_size())
        model = self.build_model(cfg)
        optimizer = self.build_optimizer(cfg, model)
        loader = self.build_train_loader(cfg)
        on_cpu = torch.device(cfg.MODEL.DEVICE).type == "cpu"
        device_ids = {"device_ids": None} if on_cpu else {}
        model = create_ddp_model(model, broadcast_buffers=False, **device_ids)
        engine = AMPTrainer if cfg.SOLVER.AMP.ENABLED else SimpleTrainer
        self._trainer = engine(model, loader, optimizer)
        self.scheduler = self.build_lr_scheduler(cfg, optimizer)
        self.checkpointer = GramCheckpointer(
            model, cfg.OUTPUT_DIR, classes=cfg.MODEL.CLASSES, trainer=weakref.proxy(self)
        )
        self.start_iter = 0
        self.max_iter = cfg.SOLVER.MAX_ITER
        self.cfg = cfg
        self.register_hooks(self.build_hooks())

    def _dataset_names(self, cfg: CfgNode) -> list[str]:
        """The data sets that the run reads; a subclass's own loaders may read others."""

        def is_stock(*methods: str) -> bool:
            own, stock = type(self), GramTrainer
            return all(getattr(own, m).__func__ is getattr(stock, m).__func__ for m in methods)

        train = [*cfg.DATASETS.TRAIN] if is_stock("build_train_loader") else []
        return [*train, *cfg.DATASETS.TEST] if is_stock("build_test_loader", "test") else train

    @classmethod
    def build_model(cls, cfg: CfgNode) -> nn.Module:
        """The detector; its modules are logged with ``VERBOSE`` only, as they fill many screens."""
        model = build_model(cfg)
        if cfg.get("VERBOSE"):
            logger.info("Model:\n%s", model)
        return model

    def build_hooks(self):
        """Detectron2's hooks, one that seeds each iteration, and one for the first lines."""
        reseed = [ReseedHook(self.cfg.SEED)] if is_replayable(self.cfg) else []
        if comm.is_main_process():
            own: list[HookBase] = [EarlyProgressHook(self.max_iter)]
        else:  # it writes nothing, but should know the last one
            period = self.cfg.SOLVER.CHECKPOINT_PERIOD
            own = [PeriodicCheckpointer(self.checkpointer, period)]
        # Before Detectron2's own writer, which is the last.
        *stock, last = super().build_hooks()
        return [*reseed, *stock, *own, last]

    def resume_or_load(self, resume: bool = True) -> None:
        """Resume from the last checkpoint and its position in the data, or load weights."""
        resumes = resume and self.checkpointer.has_checkpoint()
        if not resumes and not self.cfg.MODEL.WEIGHTS and has_fixed_parts(self.model):
            logger.warning(
                "MODEL.WEIGHTS is empty, so the parts that MODEL.BACKBONE.FREEZE_AT (%d) and "
                "frozen norms keep fixed stay random. To train from scratch, set "
                "MODEL.BACKBONE.FREEZE_AT to 0 and the backbone's NORM to BN.",
                self.cfg.MODEL.BACKBONE.FREEZE_AT,
            )
        super().resume_or_load(resume)
        require_same("the iteration to go on from", self.start_iter)
        if self.start_iter == self.max_iter and not self.checkpointer.has_end:
            self.iter = self.start_iter - 1  # nothing is left to do that would save it again
            self.checkpointer.save("model_final", iteration=self.iter)
        if not self.start_iter or not is_replayable(self.cfg):
            return
        if "start_iter" in inspect.signature(self.build_train_loader).parameters:
            self._trainer.reset_data_loader(
                lambda: self.build_train_loader(self.cfg, start_iter=self.start_iter)
            )
        else:
            logger.warning(
                "%s.build_train_loader takes no start_iter. The data starts from the beginning, so "
                "the resumed run will differ from one that was not stopped.",
                type(self).__name__,
            )

    def state_dict(self):
        """Detectron2's, and the number of threads."""
        return {**super().state_dict(), "threads": torch.get_num_threads()}

    def load_state_dict(self, state_dict):
        """Detectron2's; chosen threads go on as they were."""
        resume_threads(state_dict.get("threads"))
        super().load_state_dict(state_dict)

    def train(self):
        """Load ``MODEL.WEIGHTS`` if nothing has been loaded, and train.

        Where a picture cannot be read or SIGTERM comes, the weights are saved first.
        """
        if not self.checkpointer.has_loaded:
            self.resume_or_load(resume=False)
        self._completed = self.start_iter - 1
        self._watch = LossWatch()
        logging.getLogger("detectron2.engine.train_loop").addFilter(_without_trace)
        with self._naming_last_checkpoint(), Termination() as termination:

            def before_forward(model: nn.Module, args: tuple) -> None:
                # Evaluations are not of the same length in all processes.
                termination.check(together=model.training)
                self._batch = args[0]

            handle = self.model.register_forward_pre_hook(before_forward)
            try:
                return super().train()
            except (PictureError, Terminated) as error:
                # SIGTERM comes to all processes, of which the first one saves.
                saves = comm.is_main_process() or not isinstance(error, Terminated)
                if saves and self._completed >= self.start_iter:
                    self._save_completed()
                    with suppress(OSError):  # the log's disk may be full
                        logger.error("Saved iteration %d. Then: %s", self._completed, error)
                elif saves:
                    logger.error("No iteration is complete, so nothing was saved: %s", error)
                raise
            finally:
                handle.remove()

    def _naming_last_checkpoint(self) -> AbstractContextManager:
        saved = self.checkpointer.saved
        return naming_last_checkpoint(saved.folder, lambda: saved.last)

    def before_train(self) -> None:
        """Detectron2's; of each scalar the last values stay, not a million as by default."""
        self.storage._history.default_factory = partial(HistoryBuffer, max_length=HISTORY)
        super().before_train()

    def after_step(self) -> None:
        """Detectron2's; where the disk takes no more, no hook ends by writing there too."""
        try:
            with self._naming_last_checkpoint():
                super().after_step()
        except SavingError:
            self._hooks.clear()
            raise

    def run_step(self) -> None:
        """One iteration; the weights are good when it has ended."""
        try:
            super().run_step()
        except DivergenceError:
            raise
        except FloatingPointError as error:  # of Detectron2, which checks losses and proposals
            raise self._diverged(" ".join(str(error).split()).rstrip(".")) from error
        self._completed = self.iter
        loss = self.storage.latest().get("total_loss")
        if loss and (reason := self._watch.explosion(loss[0])):
            raise self._diverged(reason)

    def _diverged(self, reason: str) -> DivergenceError:
        model: Any = getattr(self.model, "module", self.model)
        module, losses = None, None
        if comm.get_world_size() == 1:  # a pass of one process alone may wait for the others
            if is_replayable(self.cfg):
                seed_everything(MODEL, self.cfg.SEED, comm.get_rank(), self.iter)
            module, losses = first_not_finite(model, lambda: model(self._batch))
        return diverged(
            self.iter,
            not_finite(losses) or reason if isinstance(losses, dict) else reason,
            images=[
                r["file_name"] for r in self._batch if isinstance(r, dict) and "file_name" in r
            ],
            module=module,
            checkpoint=self.checkpointer.saved.last,
        )

    def _save_completed(self) -> None:
        # The process that fails saves, as the others may be stuck; all have the same weights.
        self.checkpointer.save_to_disk = True
        self.iter = self._completed
        self.checkpointer.save(f"model_{self.iter:07d}", iteration=self.iter)

    @classmethod
    def build_train_loader(cls, cfg: CfgNode, start_iter: int = 0):
        """A loader that can continue from an iteration, or Detectron2's own if that is impossible.

        An override with its own mapper should return ``build_replayable_train_loader(cfg,
        start_iter, mapper)``. An override without ``start_iter`` starts from the beginning, also in
        a resumed run.
        """
        if is_replayable(cfg):
            return build_replayable_train_loader(cfg, start_iter)
        logger.warning(
            "If this run is resumed, it will differ from one that was not stopped. Exact resume "
            "requires SEED of at least 0 (it is %s) and DATALOADER.SAMPLER_TRAIN TrainingSampler "
            "(it is %s).",
            cfg.SEED,
            cfg.DATALOADER.SAMPLER_TRAIN,
        )
        dicts = training_records(cfg)
        mapper = NamingMapper(DatasetMapper(cfg, True), skippable(cfg, len(dicts)))
        loader = build_detection_train_loader(cfg, mapper=mapper, dataset=dicts)
        grouped = isinstance(loader, AspectRatioGroupedDataset)
        guard_loader(loader.dataset if grouped else loader, cfg.DATALOADER.TIMEOUT)
        return loader

    @classmethod
    def build_test_loader(cls, cfg: CfgNode, dataset_name: str):
        """Detectron2's, with errors that name the picture."""
        mapper = NamingMapper(DatasetMapper(cfg, False))
        loader = build_detection_test_loader(cfg, dataset_name, mapper=mapper)
        return guard_loader(loader, cfg.DATALOADER.TIMEOUT)

    @classmethod
    def build_evaluator(cls, cfg: CfgNode, dataset_name: str) -> COCOEvaluator:
        """The COCO evaluator; its results go to ``OUTPUT_DIR/inference/<data set>``."""
        return COCOEvaluator(dataset_name, output_dir=_results_dir(cfg, dataset_name))

    @classmethod
    def test(cls, cfg: CfgNode, model, evaluators=None):
        """Evaluate on ``DATASETS.TEST``, then draw predictions next to the ground truth.

        A DG-Net's closed edges are logged with the first batch: `gram_backbones.dgnet.gate_report`.
        With ``TEST.DEPLOY`` a deployed copy is evaluated.
        """
        if cfg.TEST.DEPLOY:
            model = deploy(getattr(model, "module", model))
        report_gates(model, logger.log)
        with heartbeat("The evaluation", logger, logging.getLogger("detectron2")):
            results = super().test(cfg, model, evaluators)
            if evaluators is None and comm.is_main_process():
                for name in cfg.DATASETS.TEST:
                    _draw_results(cfg, name)
        return results


class GramPredictor(DefaultPredictor):
    """``DefaultPredictor`` that raises unless ``MODEL.WEIGHTS`` fill the whole detector.

    The class names in ``metadata`` are those of ``MODEL.CLASSES``, or otherwise the file's.

    With ``TEST.DEPLOY`` it predicts with a deployed copy: `gram_backbones.fused.deploy`.
    """

    model: nn.Module

    def __init__(self, cfg: CfgNode):
        if not cfg.MODEL.WEIGHTS:
            raise ValueError(
                "MODEL.WEIGHTS is empty; a predictor needs the file of a trained model"
            )
        cfg = on_available_device(cfg)
        stock = cfg.clone()
        stock.defrost()
        stock.MODEL.WEIGHTS = ""
        super().__init__(stock)
        self.cfg = cfg.clone()
        self.metadata = Metadata()
        if cfg.DATASETS.TEST:
            self.metadata = MetadataCatalog.get(cfg.DATASETS.TEST[0])
        checkpointer = GramCheckpointer(self.model, heads="exact", classes=cfg.MODEL.CLASSES)
        checkpointer.load(cfg.MODEL.WEIGHTS)
        classes = list(cfg.MODEL.CLASSES) or checkpointer.file_classes
        if classes and self.metadata.get("thing_classes") != classes:
            # Not the catalog's: the data set need not be registered where a model predicts.
            self.metadata = Metadata(thing_classes=classes)
        if cfg.TEST.DEPLOY:
            self.model = deploy(self.model)


def warn_about_data(cfg: CfgNode, names: Sequence[str]) -> None:
    """Check the annotations of data sets, in the first process, and log the warnings.

    Raises:
        DataError: there are errors.
    """
    if comm.is_main_process():
        for report in check_annotations(cfg, names):
            logger.warning(report)


def end_launched_processes() -> None:
    """`end_processes` after Detectron2's ``launch``, whose ``comm`` keeps process groups."""
    comm._LOCAL_PROCESS_GROUP = None
    comm._get_global_gloo_group.cache_clear()
    end_processes()


def _without_trace(record: logging.LogRecord) -> bool:
    """Shorten Detectron2's record of an error that names its cause; it is raised all the same."""
    error = record.exc_info[1] if record.exc_info else None
    if isinstance(error, (DivergenceError, PictureError, SavingError)):
        record.msg, record.args, record.exc_info = f"The training stopped: {error}", (), None
    return True


def _with_classes(cfg: CfgNode, names: list[str]) -> CfgNode:
    """A copy with the class names of these data sets."""
    frozen, cfg = cfg.is_frozen(), cfg.clone()
    cfg.defrost()
    set_classes(cfg, names)
    if frozen:
        cfg.freeze()
    return cfg


def _draw_results(cfg: CfgNode, dataset_name: str) -> None:
    """Draw what the COCO evaluator wrote; another evaluator may have written nothing."""
    folder = _results_dir(cfg, dataset_name)
    results = os.path.join(folder, "coco_instances_results.json")
    if not cfg.TEST.PICTURES.NUM:
        return
    if not os.path.isfile(results):
        logger.info("No pictures drawn: there is no %s", results)
        return
    pictures = os.path.join(folder, "pictures")
    saved = save_pictures(
        results,
        dataset_name,
        pictures,
        limit=cfg.TEST.PICTURES.NUM,
        score_thresh=cfg.TEST.PICTURES.SCORE_THRESH,
    )
    logger.info("Wrote %d pictures to %s", saved, pictures)


def _results_dir(cfg: CfgNode, dataset_name: str) -> str:
    return os.path.join(cfg.OUTPUT_DIR, "inference", dataset_name)
