"""Training and evaluation loops: DDP, mixed precision, moving average, exact resume."""

from __future__ import annotations

import time
from collections.abc import Callable
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any, cast

import torch
import torch.nn.functional as F
from timm.data import Mixup
from timm.utils import ModelEmaV3, accuracy, distribute_bn
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel
from torch.utils.data import DataLoader, Dataset, DistributedSampler

from ..data import PictureError
from ..dgnet.connectivity import SHARES, dynamic_stages, summarise
from ..dgnet.gate_report import report_gates
from ..dgnet.graph import record_connectivity, training_gate
from ..distributed import require_same
from ..divergence import (
    DivergenceError,
    LossWatch,
    diverged,
    first_not_finite,
    not_finite,
    require_finite,
)
from ..heartbeat import progress
from ..lost_processes import LOADER_TIMEOUT
from ..termination import Terminated, Termination
from ..threads import resume_threads
from ..weights.checkpoints import naming_last_checkpoint
from ..weights.loading import load_classifier_weights, load_weights
from .building import (
    AMP_DTYPES,
    RunConfig,
    build_classifier,
    build_optimizer,
    build_scheduler,
)
from .checkpoint import (
    LAST,
    PREVIOUS,
    describe,
    fill_classifier,
    random_state,
    read_last,
    restore_random_state,
    write_checkpoint,
    write_metrics,
)
from .data import count_images, evaluation_loader, training_loader
from .processes import Processes, seed_everything


def autocast(device: torch.device, amp: str) -> AbstractContextManager:
    """The context of a forward pass, with or without mixed precision."""
    return torch.autocast(device.type, AMP_DTYPES[amp], enabled=amp != "none")


@torch.no_grad()
def evaluate(
    model: nn.Module,
    loader: DataLoader,
    processes: Processes,
    amp: str = "none",
    *,
    before_batch: Callable[[], None] = lambda: None,
) -> dict[str, float]:
    """Cross-entropy, and top-1 and top-5 accuracy in percent, over the images of all processes.

    Models with dynamic edges also get ``training_gate_top1``, for which every edge is computed and
    weighted as in training, and the shares of :func:`gram_backbones.dgnet.connectivity.summarise`.
    """
    device = processes.device
    model.eval()
    stages = dynamic_stages(model)
    keys = ("val_loss", "top1", "top5", *(("training_gate_top1", *SHARES) if stages else ()))
    if processes.rank == 0:
        report_gates(model, lambda level, line: print(line, flush=True))
    batches = iter(loader) if processes.rank else progress(loader, "evaluation")
    totals = torch.zeros(len(keys) + 1, dtype=torch.float64, device=device)
    for images, labels in batches:
        before_batch()
        images, labels = images.to(device), labels.to(device)
        with autocast(device, amp), record_connectivity(model) as records:
            logits = model(images)
        logits = logits.float()
        means = [F.cross_entropy(logits, labels), *accuracy(logits, labels, topk=(1, 5))]
        if stages:
            with autocast(device, amp), training_gate(model):
                means += accuracy(model(images).float(), labels)
            shares = summarise({name: records[name] for name in stages})
            means += logits.new_tensor([shares[key] for key in SHARES])
        totals += torch.stack([*means, torch.ones_like(means[0])]) * len(labels)
    *sums, count = processes.sum(totals).tolist()
    return dict(zip(keys, (value / count for value in sums)))


class Evaluation:
    """Evaluation of a checkpoint.

    Args:
        config: model, number of classes, batch size and precision of the run.
        val_set: images and labels.
        path: weight file of the whole classifier, such as a run's checkpoint.
        processes: rank of this process, their number and the device.
        workers: loader processes per process.
        timeout: longest wait in seconds for a batch of theirs.

    Raises:
        FileNotFoundError, WeightError: see
            :func:`gram_backbones.weights.loading.load_classifier_weights`.
    """

    def __init__(
        self,
        config: RunConfig,
        val_set: Dataset,
        path: str | Path,
        processes: Processes,
        *,
        workers: int = 0,
        timeout: int = LOADER_TIMEOUT,
    ):
        self.config, self.processes = config, processes
        self.model = build_classifier(
            config.model, config.num_classes, config.recipe, config.model_kwargs
        )
        load_classifier_weights(self.model, path)
        self.model.to(processes.device)
        batch = max(1, config.batch_size // processes.count)
        share = dict(rank=processes.rank, count=processes.count)
        options = dict(num_workers=workers, timeout=timeout)
        self.loader = evaluation_loader(val_set, batch, **share, **options)
        self.images = count_images(val_set)

    def run(self) -> dict[str, float]:
        """Print and return the results of :func:`evaluate`."""
        found = evaluate(self.model, self.loader, self.processes, self.config.amp)
        if self.processes.rank == 0:
            print(
                f"top-1 {found['top1']:.2f}, top-5 {found['top5']:.2f}, loss "
                f"{found['val_loss']:.4f} on {self.images} images"
            )
        return found


class Trainer:
    """One training run, or the rest of one.

    At the start of each epoch, all randomness is seeded from the seed, the epoch and the rank. So a
    run that is resumed after any epoch equals one that was not stopped, on a CPU bit for bit. So
    does one that SIGTERM stops: it saves its state in the middle of the epoch and exits with 143.

    Args:
        config: settings of the run.
        train_set, val_set: images and labels.
        output: folder for ``last.pth``, ``best.pth`` and ``metrics.jsonl``.
        processes: rank of this process, their number and the device.
        workers: loader processes per training process.
        timeout: longest wait in seconds for a batch of theirs.
        resume: checkpoint to resume from. The run may be longer than the checkpoint's: then the
            learning rate goes on along the longer run's schedule.

    Raises:
        FileExistsError: ``output`` contains a run, and ``resume`` is None.
        FileNotFoundError, ValueError: the configuration is not possible, or the checkpoint is of
            another run.
        ProcessesDifferError: processes found different checkpoints, or one found none.
    """

    def __init__(
        self,
        config: RunConfig,
        train_set: Dataset,
        val_set: Dataset,
        output: str | Path,
        processes: Processes,
        *,
        workers: int = 0,
        timeout: int = LOADER_TIMEOUT,
        resume: str | Path | None = None,
    ):
        self.config, self.recipe, self.processes = config, config.recipe, processes
        self.output = Path(output)
        if resume is None and any((self.output / name).exists() for name in (LAST, PREVIOUS)):
            raise FileExistsError(
                f"{self.output} already contains a run: resume it, or choose another output folder"
            )
        self.resumes = resume is not None
        self._build_loaders(train_set, val_set, num_workers=workers, timeout=timeout)
        self._build_training()
        self.epoch, self.updates = 0, 0
        self.history: list[dict[str, Any]] = []
        self.batches = 0  # of the epoch that has begun
        self.total = torch.zeros((), dtype=torch.float64)  # of their losses
        self.start_lr = 0.0  # learning rate where it began
        self.random: dict[str, Any] | None = None  # where they were trained before a stop
        self._watch, self._termination = LossWatch(), Termination()
        file = self._resume(resume) if resume is not None else None
        require_same("the checkpoint to go on from", (file, self.updates))
        self.parallel: nn.Module = self.model
        if processes.count > 1:
            self.parallel = DistributedDataParallel(self.model)

    def _build_loaders(self, train_set: Dataset, val_set: Dataset, **options: int) -> None:
        rank, count = self.processes.rank, self.processes.count
        batch, rest = divmod(self.config.batch_size, count)
        if rest or not batch:
            raise ValueError(
                f"batch_size is {self.config.batch_size}; it must be a multiple of {count}, the "
                "number of processes"
            )
        if self.recipe.mixup and batch % 2:
            raise ValueError(f"{batch} images per process; with mixup, the number must be even")
        share: dict[str, Any] = dict(rank=rank, count=count, **options)
        share["pin_memory"] = self.processes.device.type == "cuda"
        self.train_loader = training_loader(train_set, batch, seed=self.config.seed, **share)
        self.val_loader = evaluation_loader(val_set, batch, **share)

    def _build_training(self) -> None:
        config, recipe, device = self.config, self.recipe, self.processes.device
        if config.amp == "fp16" and device.type == "cpu":
            raise ValueError("amp is 'fp16', which needs a GPU; on a CPU, use 'none' or 'bf16'")
        seed_everything(config.seed)
        self.model = build_classifier(config.model, config.num_classes, recipe, config.model_kwargs)
        if config.weights and not self.resumes:
            load_weights(self.model, config.weights)
        self.model.to(device)
        self.preprocessing = self.model.variant.preprocessing
        self.optimizer = build_optimizer(self.model, recipe, config.peak_lr)
        updates = len(self.train_loader)
        self.scheduler = build_scheduler(self.optimizer, recipe, config.peak_lr, updates)
        self.scaler = torch.amp.GradScaler(device.type, enabled=config.amp == "fp16")
        self.ema = self.mixup = None
        if recipe.ema_decay is not None:
            # With warm-up of the decay: a short run would otherwise average its random start.
            self.ema = ModelEmaV3(self.model, recipe.ema_decay, use_warmup=True)
        if recipe.mixup:
            self.mixup = Mixup(recipe.mixup, label_smoothing=0.0, num_classes=config.num_classes)

    def run(self) -> list[dict[str, Any]]:
        """Train the remaining epochs.

        Returns:
            The entries of ``metrics.jsonl``, one per epoch: learning rate at its start, training
            loss, validation loss, top-1 and top-5 in percent, and with dynamic edges the shares of
            closed edges and blocks. The metrics of the moving average begin with ``ema_``. Then
            training images per second over all processes, and seconds including evaluation.

        Raises:
            DivergenceError: the training loss is not finite or explodes, see
                `gram_backbones.divergence`. Earlier checkpoints are kept.
            PictureError: a picture cannot be read. An epoch whose evaluation it stops is saved.
            Terminated: SIGTERM came, and the state was saved.
        """
        self.output.mkdir(parents=True, exist_ok=True)
        with naming_last_checkpoint(self.output, self._last), self._termination:
            try:
                self._run_epochs()
            except Terminated:
                self._save_unfinished()
                raise
        return self.history

    def _run_epochs(self) -> None:
        if self.history and "top1" not in self.history[-1]:  # its evaluation was stopped
            self._evaluate_epoch()
        if self.config.weights and not self.updates:
            start = self._evaluate()
            if self.processes.rank == 0:
                print(f"before training: top-1 {start['top1']:.2f}", flush=True)
        for epoch in range(self.epoch + 1, self.recipe.epochs + 1):
            if self.random is None:
                self.start_lr = self.optimizer.param_groups[0]["lr"]
            line: dict[str, Any] = {"epoch": epoch, "lr": self.start_lr}
            start = time.perf_counter()
            line["loss"] = self._train_epoch(epoch)
            seconds = time.perf_counter() - start
            images = len(self.train_loader) * self.config.batch_size
            line |= {"images_per_second": round(images / seconds, 1), "seconds": round(seconds, 1)}
            self.history.append(line)
            self.epoch = epoch
            self.batches = 0
            self._evaluate_epoch()

    def _evaluate_epoch(self) -> None:
        """Evaluate and save the last epoch; save it too if a picture stops the evaluation."""
        line = self.history[-1]
        start = time.perf_counter()
        try:
            line |= self._evaluate()
        except PictureError as error:
            self._save()  # by the process that fails: all have the same weights
            raise PictureError(
                f"{error}. The weights of epoch {self.epoch} are saved in "
                f"{self.output / 'last.pth'}; --resume begins with their evaluation"
            ) from error
        line["seconds"] = round(line["seconds"] + time.perf_counter() - start, 1)
        if self.processes.rank == 0:
            self._save()
            write_metrics(self.output / "metrics.jsonl", self.history)
            print(self._summary(line), flush=True)

    def _train_epoch(self, epoch: int) -> float:
        """One pass over the training images; their mean loss."""
        seed_everything(self.config.seed, epoch, self.processes.rank)
        cast(DistributedSampler, self.train_loader.sampler).set_epoch(epoch)
        self.model.train()
        loader, what = self.train_loader, f"epoch {epoch}/{self.recipe.epochs}"
        batches = iter(loader) if self.processes.rank else progress(loader, what)
        if self.random is None:
            self.batches, self.total = 0, torch.zeros_like(self.total)
        elif self.batches < len(self.train_loader):
            for _ in range(self.batches):  # loaded again, as workers count on
                next(batches)
        if self.random is not None:
            restore_random_state(self.random)
            self.random = None
        while self.batches < len(self.train_loader):
            self._termination.check(together=True)
            self.total += self._update(*next(batches))
            self.batches += 1
        total = self.processes.sum(self.total).item()
        return total / len(self.train_loader) / self.processes.count

    def _update(self, images: Tensor, labels: Tensor) -> float:
        """Train on a batch; its loss."""
        device = self.processes.device
        images = images.to(device, non_blocking=True)
        labels = labels.to(device, non_blocking=True)
        if self.mixup is not None:
            images, labels = self.mixup(images, labels)
        with autocast(device, self.config.amp):
            logits = self.parallel(images)
        smoothing = self.recipe.label_smoothing
        loss = F.cross_entropy(logits.float(), labels, label_smoothing=smoothing)
        value = loss.item()
        if reason := not_finite({"loss": loss}) or self._watch.explosion(value):
            raise self._diverged(reason, images)
        self.optimizer.zero_grad()
        self.scaler.scale(loss).backward()
        self.scaler.step(self.optimizer)
        self.scaler.update()
        self.updates += 1
        self.scheduler.step_update(self.updates)
        if self.ema is not None:
            self.ema.update(self.model, step=self.updates)
        return value

    def _diverged(self, reason: str, images: Tensor) -> DivergenceError:
        module = None
        if self.processes.count == 1:  # a pass of one process alone may wait for the others
            module, _ = first_not_finite(self.model, lambda: self.model(images))
        loader = cast(Any, self.train_loader)
        indices = [*loader.sampler][self.batches * len(images) :][: len(images)]
        samples = getattr(loader.dataset, "samples", None)  # of a folder: paths and labels
        names = [samples[i][0] if samples else f"number {i}" for i in indices]
        return diverged(
            self.updates + 1, reason, images=names, module=module, checkpoint=self._last()
        )

    def _last(self) -> Path | None:
        file = self.output / "last.pth"
        return file if file.is_file() else None

    def _evaluate(self) -> dict[str, float]:
        metrics = {}
        networks = {"": self.model}
        if self.ema is not None:
            networks["ema_"] = self.ema.module
        for prefix, network in networks.items():
            if self.processes.count > 1:  # their BN statistics are of different images
                distribute_bn(network, self.processes.count, reduce=True)
            check = self._termination.check
            found = evaluate(
                network, self.val_loader, self.processes, self.config.amp, before_batch=check
            )
            metrics.update({prefix + key: value for key, value in found.items()})
        return metrics

    def _save(self) -> None:
        line = self.history[-1]
        averaged = line.get("ema_top1", -1.0) > line.get("top1", -1.0)
        prefix = "ema_" if averaged else ""
        values = {
            "weights": "moving average" if averaged else "network",
            "epoch": self.epoch,
        }
        for key in ("top1", "top5"):
            if prefix + key in line:  # not where the evaluation was stopped
                values[key] = f"{line[prefix + key]:.2f}"
        content = self._content(values)
        if averaged:
            content["state_dict"] = content["training"]["ema"]
        tops = [max(e.get("top1", -1.0), e.get("ema_top1", -1.0)) for e in self.history]
        best = tops[-1] > max(tops[:-1], default=-1.0)
        write_checkpoint(self.output / "last.pth", content, best=best)

    def _content(self, values: dict[str, Any]) -> dict[str, Any]:
        """A checkpoint with the network's weights; ``values`` describe them further."""
        require_finite(self.model, self._last())
        config = self.config
        said = {
            "model": config.model,
            "dataset": config.dataset,
            "num_classes": config.num_classes,
            "image_size": self.recipe.image_size,
            **values,
        }
        if config.model_kwargs:
            said["model_kwargs"] = dict(config.model_kwargs)
        training = {
            "model": self.model.state_dict(),
            "ema": None if self.ema is None else self.ema.module.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "scaler": self.scaler.state_dict(),
            "updates": self.updates,
            "history": self.history,
            "config": config.record(),
            "threads": torch.get_num_threads(),
        }
        return {
            "state_dict": training["model"],
            "meta": describe(self.preprocessing, said),
            "training": training,
        }

    def _save_unfinished(self) -> None:
        """Save the state within an epoch or its evaluation, if it has begun."""
        if self.history and "top1" not in self.history[-1]:
            if self.processes.rank == 0:
                self._save()
            return
        if not self.batches:
            return
        own = {"random": random_state(), "total": self.total}
        states = self.processes.gather(own)
        if self.processes.rank == 0:
            content = self._content({"weights": "network", "epoch": self.epoch})
            content["training"]["unfinished"] = {
                "batches": self.batches,
                "lr": self.start_lr,
                "states": states,
            }
            write_checkpoint(self.output / "last.pth", content, best=False)
            print(f"SIGTERM: saved update {self.updates} to {self.output / 'last.pth'}", flush=True)

    def _summary(self, line: dict[str, Any]) -> str:
        ema = f" (average {line['ema_top1']:.2f})" if self.ema is not None else ""
        return (
            f"epoch {self.epoch}/{self.recipe.epochs}: loss {line['loss']:.4f}, "
            f"top-1 {line['top1']:.2f}{ema}, top-5 {line['top5']:.2f}, "
            f"{line['images_per_second']:.0f} images/s"
        )

    def _resume(self, path: str | Path) -> str:
        """Continue a run from a checkpoint, and return its name; errors are those of the class."""
        path, content = read_last(path, self.processes.rank)
        content = content.get("training")
        if content is None:
            raise ValueError(f"{path} holds only weights, so no run can be resumed from it")
        # Checkpoints of earlier versions have neither.
        added: dict[str, Any] = {"model_kwargs": {}, "weights": None}
        here, there = self.config.record(), {**added, **content["config"]}
        differing = [key for key in {**here, **there} if here.get(key) != there.get(key)]
        longer = here["epochs"] > there["epochs"]
        if longer:
            differing.remove("epochs")
        if differing:
            changes = (f"{k} is {here.get(k)!r} here, {there.get(k)!r} there" for k in differing)
            raise ValueError(f"{path} is of another run: {'; '.join(changes)}")
        fill_classifier(self.model, content["model"], path)
        if self.ema is not None:
            fill_classifier(self.ema.module, content["ema"], path)
        resume_threads(content.get("threads"))
        self.optimizer.load_state_dict(content["optimizer"])
        self.scaler.load_state_dict(content["scaler"])
        self.history = content["history"]
        self.epoch = self.history[-1]["epoch"] if self.history else 0
        self.updates = content["updates"]
        self.scheduler.step_update(self.updates)
        if unfinished := content.get("unfinished"):
            state = unfinished["states"][self.processes.rank]
            self.batches, self.start_lr = unfinished["batches"], unfinished["lr"]
            self.total, self.random = state["total"], state["random"]
        if longer and self.processes.rank == 0:
            print(
                f"resuming a run of {there['epochs']} epochs as one of {here['epochs']}: the "
                f"learning rate follows the longer schedule from epoch {self.epoch + 1} on, where "
                f"it is {self.optimizer.param_groups[0]['lr']:.3g}",
                flush=True,
            )
        return path.name
