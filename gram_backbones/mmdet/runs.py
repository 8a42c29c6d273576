"""What a run of MMEngine needs before it starts: data root, devices, checkpoints."""

from __future__ import annotations

import copy
import functools
import inspect
import logging
import os
from collections.abc import Iterable
from contextlib import suppress
from datetime import timedelta
from pathlib import Path
from typing import Any, cast

import mmdet
import torch
from mmengine.config import Config
from mmengine.hooks import CheckpointHook, EMAHook, Hook
from mmengine.logging import MMLogger
from mmengine.optim import OptimWrapper
from mmengine.registry import HOOKS, RUNNERS
from mmengine.runner import BaseLoop, Runner
from torch import Tensor, nn
from torch.utils.data import DataLoader

from ..data import PictureError, check_checkpoint_classes
from ..dgnet.gate_report import report_gates
from ..distributed import require_same
from ..divergence import (
    DivergenceError,
    LossWatch,
    diverged,
    first_not_finite,
    not_finite,
    require_finite,
)
from ..fused import deploy
from ..heartbeat import heartbeat
from ..lost_processes import TIMEOUT, guard_loader
from ..run_record import FILE as RUN_RECORD
from ..seeding import MODEL, seed_everything
from ..termination import Terminated, Termination
from ..threads import resume_threads
from ..upstream_warnings import silence_logger
from ..weights.checkpoints import (
    SavedCheckpoints,
    end_run_without_disk,
    naming_last_checkpoint,
    saving,
)
from ..weights.detector import fit_detector
from ..weights.files import WeightError, fetch_file
from ..weights.published import read_weights
from .channels import fill_channels
from .checkpoints import GramCheckpointHook, safe_loading
from .interface import MMDetInterface
from .own_data import (
    check_annotations,
    check_classes,
    leaf_datasets,
    loader_classes,
    name_pictures,
    skip_unreadable,
)
from .progress import EarlyProgressHook
from .record import evaluate_classes, keep_predictions, record_run
from .replay import is_replayable, replayable, resume_line

LOADERS = ("train_dataloader", "val_dataloader", "test_dataloader")


def set_data_root(cfg: Config, root: str) -> None:
    """Replace the config's ``data_root`` wherever a path begins with it.

    Raises:
        ValueError: the config has no ``data_root``.
    """
    old = os.path.join(cfg.get("data_root") or "", "")
    if not old:
        raise ValueError(
            "the config has no top-level data_root to replace; set the paths of its dataloaders "
            "and evaluators by --cfg-options"
        )
    root = os.path.join(root, "")
    moved = _replaced({key: cfg.get(key) for key in cfg.keys()}, old, root)
    for key, value in moved.items():
        cfg[key] = value


def _replaced(value: Any, old: str, new: str) -> Any:
    if isinstance(value, str):
        if os.path.join(value, "") == old:
            return new
        return new + value[len(old) :] if value.startswith(old) else value
    if isinstance(value, dict):
        return type(value)({k: _replaced(v, old, new) for k, v in value.items()})
    if isinstance(value, (list, tuple)):
        return type(value)(_replaced(item, old, new) for item in value)
    return value


def check_data(cfg: Config, loaders: Iterable[str] = LOADERS) -> None:
    """Make sure that the data sets' local files are there; reads no file.

    Raises:
        FileNotFoundError: an annotation file or image folder is missing; the message lists the
            paths.
    """
    missing = []
    for loader in loaders:
        for dataset in leaf_datasets((cfg.get(loader) or {}).get("dataset")):
            root = dataset.get("data_root") or ""
            prefixes = [v for v in (dataset.get("data_prefix") or {}).values() if v]
            paths = [p for p in [dataset.get("ann_file"), *prefixes] if isinstance(p, str) and p]
            paths = [path if "://" in path else os.path.join(root, path) for path in paths]
            missing += [p for p in paths if "://" not in p and not os.path.exists(p)]
        evaluators = cfg.get(loader.replace("dataloader", "evaluator")) or []
        for evaluator in [evaluators] if isinstance(evaluators, dict) else evaluators:
            file = evaluator.get("ann_file")
            if file and "://" not in file and not os.path.exists(file):
                missing.append(file)
    if missing:
        listed = "\n".join(f"  {path}" for path in dict.fromkeys(missing))
        raise FileNotFoundError(
            f"data set not found; looked at\n{listed}\n"
            "Give the folder that holds annotations/, train2017/ and val2017/: --data-root FOLDER"
        )


def set_timeouts(cfg: Config, processes: int, loaders: int) -> None:
    """Set how many seconds processes wait for each other, and for a worker of their loaders."""
    cfg.merge_from_dict({"env_cfg.dist_cfg.timeout": processes})
    for loader in LOADERS:
        if (cfg.get(loader) or {}).get("num_workers"):
            cfg[loader].timeout = loaders


def prepare_cpu_processes(cfg: Config) -> None:
    """Let several processes train without GPUs; nothing happens where there are GPUs.

    MMEngine calls CUDA when it starts processes, and gives DDP device ids, an error on CPUs.

    Raises:
        ValueError: without GPUs, processes that torchrun did not start.
    """
    if cfg.get("launcher", "none") == "none" or torch.cuda.is_available():
        return
    if cfg.launcher != "pytorch":
        raise ValueError(f"launcher is {cfg.launcher!r}; without GPUs allowed are none, pytorch")
    seconds = cfg.get("env_cfg", {}).get("dist_cfg", {}).get("timeout", TIMEOUT)
    torch.distributed.init_process_group("gloo", timeout=timedelta(seconds=seconds))
    wrapper = cfg.get("model_wrapper_cfg") or {
        "type": "MMDistributedDataParallel",
        "broadcast_buffers": False,
        "find_unused_parameters": cfg.get("find_unused_parameters", False),
    }
    cfg.model_wrapper_cfg = {**wrapper, "device_ids": None}


@RUNNERS.register_module()
class GramRunner(Runner):
    """MMEngine's runner, strict about what it loads, whose resumed runs repeat (`.replay`).

    ``load_from`` is read as `gram_backbones.weights.files` reads: nothing in the file runs. It
    fills the whole detector; a file of a backbone alone, or of another detector, is refused. Only
    before training may predictors of another number of classes keep their start.
    With ``deploy = True`` in the config a deployed copy is tested, see `gram_backbones.fused`.
    A resumed run restores every tensor. Its checkpoint is read in the same way, as are local files
    of the detector's own ``init_cfg``; ``trust_checkpoint = True`` in the config lets it run code.
    Training starts with a check of the annotations and classes. A picture that cannot be read ends
    it after the weights were saved; so does SIGTERM, with exit code 143. With ``skip_unreadable =
    True`` in the config the picture is left out of training, and counted in the log.

    Raises:
        DataError: the annotations have errors, or the classes of heads, data sets or a checkpoint
            contradict each other.
        PictureError: a picture cannot be read; the message names its path.
        FileNotFoundError: there is no such file.
        DivergenceError: the loss is not finite or explodes, see `gram_backbones.divergence`.
        WeightError: the file is not read or leaves a tensor unfilled, and nothing was changed; or
            a backbone's ``init_cfg`` names a file that does not exist, and nothing else filled it.
    """

    model: nn.Module
    _train_dataloader: Any
    _val_dataloader: Any
    _test_dataloader: Any
    _resumes = False
    _evaluates = False
    _has_loaded: bool
    _started = 0
    _heads = "exact"
    _termination = Termination()  # until a training begins, nobody waits for the signal

    def build_logger(self, *args, **kwargs) -> MMLogger:
        """MMEngine's, without the messages of `gram_backbones.upstream_warnings`."""
        logger = super().build_logger(*args, **kwargs)
        silence_logger(logger)
        for handler in logger.handlers:
            if isinstance(handler, logging.FileHandler):
                end_run_without_disk(handler)
        return logger

    def register_hook(self, hook: Hook | dict, priority: Any = None) -> None:
        """MMEngine's; `GramCheckpointHook` takes the place of its own."""
        kind = hook.get("type") if isinstance(hook, dict) else None
        if (HOOKS.get(kind) if isinstance(kind, str) else kind) is CheckpointHook:
            hook = {**cast(dict, hook), "type": GramCheckpointHook}
        super().register_hook(hook, priority)

    def register_hooks(self, *args, **kwargs) -> None:
        """MMEngine's, and one for the first lines of a training."""
        super().register_hooks(*args, **kwargs)
        self.register_hook(EarlyProgressHook())

    def get_hooks_info(self) -> str:
        """The hooks' names; with ``verbose = True`` in the config MMEngine's list by stages."""
        if self.cfg.get("verbose"):
            return super().get_hooks_info()
        return ", ".join(type(hook).__name__ for hook in self.hooks)

    def _log_env(self, env_cfg: dict) -> None:
        if self.cfg.get("verbose"):
            return super()._log_env(env_cfg)
        versions = torch.__version__, mmdet.__version__
        self.logger.info("torch %s, mmdet %s; log and config go to %s", *versions, self.log_dir)

    @classmethod
    def from_cfg(cls, cfg: Config) -> Runner:
        """MMEngine's; ``in_channels="auto"`` is filled, also in the config that the run writes.

        COCO results are kept in ``work_dir/predictions``, and AP is logged for every class.
        """
        cfg = copy.deepcopy(cfg)
        keep_predictions(cfg)
        evaluate_classes(cfg)
        if isinstance(cfg["model"], dict):
            cfg["model"] = fill_channels(cfg["model"])
        return super().from_cfg(cfg)

    def dump_config(self) -> None:
        """MMEngine's, and ``run.json``, unless there is one: an evaluation keeps a training's."""
        if self.rank == 0 and not Path(self.work_dir, RUN_RECORD).exists():
            self._write_config()

    def _write_config(self) -> None:
        super().dump_config()
        record_run(self).write(self.work_dir)

    def train(self) -> nn.Module:
        """Train, and return the model."""
        self._heads = "other_classes"
        loaders = (self._train_dataloader, self._val_dataloader)
        model = getattr(self.model, "module", self.model)
        check_classes(model, loaders)
        if self.rank == 0:
            self._write_config()
        self._check_annotations(*loaders)
        self._watch = LossWatch()
        try:
            naming = naming_last_checkpoint(self.work_dir, lambda: self.saved.last)
            with naming, Termination() as self._termination:
                try:
                    return super().train()
                except (PictureError, Terminated) as error:
                    self._save_completed(error)
                    raise
        finally:
            self._heads = "exact"

    def test(self) -> dict[str, float]:
        """Test, and return the metrics."""
        self._check_annotations(None, self._test_dataloader)
        return super().test()

    def _check_annotations(self, *loaders: Any) -> None:
        model = getattr(self.model, "module", self.model)
        options = dict(masks=getattr(model, "with_mask", False))
        options["skip_unreadable"] = bool(self.cfg.get("skip_unreadable"))
        if self.rank == 0:
            for line in check_annotations(*loaders, **options):
                self.logger.warning(line)

    @staticmethod
    def build_dataloader(*args, **kwargs) -> DataLoader:
        """MMEngine's, with errors that name the picture, and a limit to what a worker takes."""
        loader = guard_loader(Runner.build_dataloader(*args, **kwargs))
        name_pictures(loader.dataset)
        return loader

    def _save_completed(self, error: PictureError | Terminated) -> None:
        """Save the weights of the last iteration, from which a run can be resumed."""
        if self.rank and isinstance(error, Terminated):
            return  # SIGTERM comes to all processes, of which the first one saves
        if self.iter <= self._started:
            self.logger.error(f"No iteration is complete, so nothing was saved: {error}")
            return
        if self._evaluates:
            for hook in self.hooks:
                if isinstance(hook, EMAHook):  # its average is in the model now
                    hook.after_val_epoch(self)
        name = f"iter_{self.iter}.pth"
        # The process that fails saves, as the others may be stuck; all have the same weights.
        # The numbers are already the next iteration's.
        meta = dict(epoch=self.epoch, iter=self.iter)
        place = str(self.saved.place)
        self._write_checkpoint(place, name, meta=meta, by_epoch=False)
        self.saved.add(os.path.join(place, name))
        with suppress(OSError):  # the log's disk may be full
            self.logger.error(f"Saved {name}. Then: {error}")

    def build_train_loop(self, loop: BaseLoop | dict) -> BaseLoop:
        """MMEngine's, with samples that do not depend on the loader's workers."""
        dataloader = self._train_dataloader
        if is_replayable(dataloader):
            self._train_dataloader = replayable(dataloader, self.seed)
        loop = super().build_train_loop(loop)
        if self.cfg.get("skip_unreadable"):
            skip_unreadable(loop.dataloader.dataset)
        self.logger.info(resume_line(self, loop, dataloader))
        return loop

    def call_hook(self, fn_name: str, **kwargs) -> None:
        """MMEngine's, and what is ours at some points of a run.

        Each iteration's draws are its own; an evaluation starts with a line about a DG-Net's
        closed edges. A training that explodes stops before a hook writes its weights.
        """
        if fn_name == "after_train_iter":
            loss = (kwargs.get("outputs") or {}).get("loss")
            if loss is not None and (reason := self._watch.explosion(torch.as_tensor(loss).item())):
                raise self._diverged(reason)
        if fn_name == "before_train_iter":
            self._termination.check(together=True)
            self._batch = kwargs.get("data_batch")
            seed_everything(MODEL, self.seed, self.rank, self.iter)
        if fn_name == "before_val_iter":
            self._termination.check()  # evaluations may differ in length among processes
        if fn_name == "before_train":
            self._started = self.iter
        if fn_name in ("before_val_epoch", "after_val_epoch"):
            self._evaluates = fn_name == "before_val_epoch"
        super().call_hook(fn_name, **kwargs)
        if self.cfg.get("deploy") and fn_name == "before_test_epoch":
            # After EMAHook has put its weights in; it takes them out of the trained model.
            self._trained = self.model
            self.model = deploy(getattr(self.model, "module", self.model))
        if self.cfg.get("deploy") and fn_name == "after_test_epoch":
            self.model = self._trained
        if fn_name in ("before_val_epoch", "before_test_epoch"):
            report_gates(self.model, self.logger.log)

    def build_optim_wrapper(self, optim_wrapper: Any) -> OptimWrapper:
        """MMEngine's, which makes no step with a loss that is not finite."""
        built = super().build_optim_wrapper(optim_wrapper)
        if isinstance(built, OptimWrapper):
            update = built.update_params

            def checked(loss: Tensor, *args: Any, **kwargs: Any) -> None:
                if not loss.isfinite():
                    raise self._diverged(f"loss is {loss.item()}")
                update(loss, *args, **kwargs)

            built.update_params = checked
        return built

    def _diverged(self, reason: str) -> DivergenceError:
        model: Any = getattr(self.model, "module", self.model)
        module, losses = None, None
        if self.world_size == 1:  # a pass of one process alone may wait for the others
            seed_everything(MODEL, self.seed, self.rank, self.iter)
            data = model.data_preprocessor(self._batch, True)
            module, losses = first_not_finite(model, lambda: model(**data, mode="loss"))
        if isinstance(losses, dict):
            named = {n: v for n, v in losses.items() if isinstance(v, Tensor)}
            named |= {n: sum(v) for n, v in losses.items() if isinstance(v, list) and v}
            reason = not_finite(named) or reason
        samples = (self._batch or {}).get("data_samples", ())
        images = [sample.metainfo.get("img_path", "?") for sample in samples]
        return diverged(
            self.iter + 1, reason, images=images, module=module, checkpoint=self.saved.last
        )

    @functools.cached_property
    def saved(self) -> SavedCheckpoints:
        """Which checkpoints the folder of the run holds."""
        return SavedCheckpoints(self.work_dir)

    def build_val_loop(self, loop: BaseLoop | dict) -> BaseLoop:
        """MMEngine's; a line comes also where it is silent for long."""
        return self._with_heartbeat(super().build_val_loop(loop), "The evaluation")

    def build_test_loop(self, loop: BaseLoop | dict) -> BaseLoop:
        """MMEngine's; a line comes also where it is silent for long."""
        return self._with_heartbeat(super().build_test_loop(loop), "The evaluation")

    def _with_heartbeat(self, loop: BaseLoop, what: str) -> BaseLoop:
        run = loop.run

        def run_with_lines() -> Any:
            with heartbeat(what, self.logger):
                return run()

        loop.run = run_with_lines
        return loop

    def _init_model_weights(self) -> None:
        with safe_loading():
            super()._init_model_weights()

    def load_or_resume(self) -> None:
        """MMEngine's; then every weight file that was asked for has been found.

        Where the last checkpoint is damaged or missing, a run goes on from the one before.
        """
        if self._resume and not self._load_from and self.saved.noted and not self._has_loaded:
            file, _ = self.saved.resume(lambda file: self.resume(str(file)), self.logger.warning)
            self.logger.info(f"Resumed from {file}")
            self._has_loaded = True
        super().load_or_resume()
        require_same("the iteration to go on from", (self.epoch, self.iter))
        for module in self._parts().values():
            if module.missing_file:
                raise WeightError(module.missing_file)

    def resume(self, filename: str, *args, **kwargs) -> None:
        """MMEngine's, with every tensor of the model restored."""
        self._resumes = True
        try:
            with safe_loading(self.cfg.get("trust_checkpoint", False)):
                super().resume(str(fetch_file(filename)), *args, **kwargs)
            self.saved.resumed(filename)
        finally:
            self._resumes = False

    def save_checkpoint(self, *args, **kwargs) -> None:
        """MMEngine's, with the number of threads among ``meta``; written whole or not at all.

        Raises:
            DivergenceError: weights are not finite.
            SavingError: the file cannot be written; those before it are as they were.
        """
        require_finite(self.model, self.saved.last)
        if self.rank == 0:
            self._write_checkpoint(*args, **kwargs)

    def _write_checkpoint(
        self, out_dir: str, filename: str, *args: Any, meta: dict | None = None, **kwargs: Any
    ) -> None:
        # MMEngine's function lets only the first process save.
        save = functools.partial(inspect.unwrap(Runner.save_checkpoint), self)
        meta = {**(meta or {}), "threads": torch.get_num_threads()}
        remote = kwargs.get("file_client_args") or kwargs.get("backend_args") or any(args[:1])
        if remote or "://" in out_dir:
            return save(out_dir, filename, *args, meta=meta, **kwargs)
        with saving(Path(out_dir, filename), self.saved.last) as part:
            save(out_dir, part.name, *args, meta=meta, **kwargs)

    def load_checkpoint(self, filename: str, *args, **kwargs) -> dict[str, Any]:
        """Fill the detector from a file; see the class."""
        training = self._heads != "exact"
        classes = loader_classes(self._train_dataloader if training else self._test_dataloader)
        if self._resumes:
            checkpoint = super().load_checkpoint(filename, *args, **{**kwargs, "strict": True})
            theirs = (checkpoint["meta"].get("dataset_meta") or {}).get("classes", ())
            check_checkpoint_classes(filename, theirs, classes, exact=True)
            resume_threads(checkpoint["meta"].get("threads"))
            return checkpoint
        model = getattr(self.model, "module", self.model)
        variant = next((part.variant for part in self._parts().values()), None)
        file = read_weights(filename, variant)
        check_checkpoint_classes(filename, file.classes, classes, exact=not training)
        found = fit_detector(model.state_dict(), self._parts(), file, heads=self._heads)
        model.load_state_dict(found.values, strict=False)
        for module in self._parts().values():
            module.missing_file = None
        for level, line in found.after_start(self._parts()).report():
            self.logger.log(level, line)
        self._has_loaded = True
        checkpoint = {"state_dict": model.state_dict()}
        self.call_hook("after_load_checkpoint", checkpoint=checkpoint)  # fills EMAHook's copy
        return checkpoint

    def _parts(self) -> dict[str, MMDetInterface]:
        return own_parts(getattr(self.model, "module", self.model))


def own_parts(model: nn.Module) -> dict[str, MMDetInterface]:
    """A detector's networks and stages of ours, by what stands before their tensors."""
    modules = model.named_modules()
    return {f"{n}." if n else "": m for n, m in modules if isinstance(m, MMDetInterface)}
