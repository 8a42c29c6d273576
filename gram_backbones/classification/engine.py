"""Training and evaluation loops: DDP, mixed precision, moving average, exact resume."""

from __future__ import annotations

import math
import time
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
from tqdm import tqdm

from ..data import PictureError
from ..dgnet.connectivity import SHARES, dynamic_stages, summarise
from ..dgnet.gate_report import report_gates
from ..dgnet.graph import record_connectivity, training_gate
from ..threads import resume_threads
from ..weights.loading import load_classifier_weights, load_weights
from .building import (
    AMP_DTYPES,
    RunConfig,
    build_classifier,
    build_optimizer,
    build_scheduler,
)
from .checkpoint import describe, fill_classifier, read_checkpoint, write_checkpoint, write_metrics
from .data import count_images, evaluation_loader, training_loader
from .processes import Processes, seed_everything


def autocast(device: torch.device, amp: str) -> AbstractContextManager:
    """The context of a forward pass, with or without mixed precision."""
    return torch.autocast(device.type, AMP_DTYPES[amp], enabled=amp != "none")


@torch.no_grad()
def evaluate(
    model: nn.Module, loader: DataLoader, processes: Processes, amp: str = "none"
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
    totals = torch.zeros(len(keys) + 1, dtype=torch.float64, device=device)
    for images, labels in loader:
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
    ):
        self.config, self.processes = config, processes
        self.model = build_classifier(
            config.model, config.num_classes, config.recipe, config.model_kwargs
        )
        load_classifier_weights(self.model, path)
        self.model.to(processes.device)
        batch = max(1, config.batch_size // processes.count)
        share = dict(rank=processes.rank, count=processes.count, num_workers=workers)
        self.loader = evaluation_loader(val_set, batch, **share)
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
    run that is resumed after any epoch equals one that was not stopped, on a CPU bit for bit.

    Args:
        config: settings of the run.
        train_set, val_set: images and labels.
        output: folder for ``last.pth``, ``best.pth`` and ``metrics.jsonl``.
        processes: rank of this process, their number and the device.
        workers: loader processes per training process.
        resume: checkpoint to resume from.

    Raises:
        FileExistsError: ``output`` contains a run, and ``resume`` is None.
        FileNotFoundError, ValueError: the configuration is not possible, or the checkpoint is of
            another run.
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
        resume: str | Path | None = None,
    ):
        self.config, self.recipe, self.processes = config, config.recipe, processes
        self.output = Path(output)
        if resume is None and (self.output / "last.pth").exists():
            raise FileExistsError(
                f"{self.output} already contains a run: resume it, or choose another output folder"
            )
        self.resumes = resume is not None
        self._build_loaders(train_set, val_set, workers)
        self._build_training()
        self.epoch, self.updates = 0, 0
        self.history: list[dict[str, Any]] = []
        if resume is not None:
            self._resume(resume)
        self.parallel: nn.Module = self.model
        if processes.count > 1:
            self.parallel = DistributedDataParallel(self.model)

    def _build_loaders(self, train_set: Dataset, val_set: Dataset, workers: int) -> None:
        rank, count = self.processes.rank, self.processes.count
        batch, rest = divmod(self.config.batch_size, count)
        if rest or not batch:
            raise ValueError(
                f"batch_size is {self.config.batch_size}; it must be a multiple of {count}, the "
                "number of processes"
            )
        if self.recipe.mixup and batch % 2:
            raise ValueError(f"{batch} images per process; with mixup, the number must be even")
        share = dict(rank=rank, count=count, num_workers=workers)
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
            FloatingPointError: the training loss is not finite. Earlier checkpoints are kept.
            PictureError: a picture cannot be read. An epoch whose evaluation it stops is saved.
        """
        self.output.mkdir(parents=True, exist_ok=True)
        if self.history and "top1" not in self.history[-1]:  # a picture stopped the evaluation
            self._evaluate_epoch()
        if self.config.weights and not self.epoch:
            start = self._evaluate()
            if self.processes.rank == 0:
                print(f"before training: top-1 {start['top1']:.2f}", flush=True)
        for epoch in range(self.epoch + 1, self.recipe.epochs + 1):
            line = {"epoch": epoch, "lr": self.optimizer.param_groups[0]["lr"]}
            start = time.perf_counter()
            line["loss"] = self._train_epoch(epoch)
            seconds = time.perf_counter() - start
            images = len(self.train_loader) * self.config.batch_size
            line |= {"images_per_second": round(images / seconds, 1), "seconds": round(seconds, 1)}
            self.history.append(line)
            self.epoch = epoch
            self._evaluate_epoch()
        return self.history

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
        total = torch.zeros((), dtype=torch.float64, device=self.processes.device)
        batches = tqdm(
            self.train_loader,
            f"epoch {epoch}/{self.recipe.epochs}",
            disable=None if self.processes.rank == 0 else True,  # None: off without a terminal
            leave=False,
        )
        for images, labels in batches:
            total += self._update(images, labels)
        loss = self.processes.sum(total).item() / len(self.train_loader) / self.processes.count
        if not math.isfinite(loss):
            raise FloatingPointError(
                f"the training loss is {loss} in epoch {epoch}; a lower learning rate may help"
            )
        return loss

    def _update(self, images: Tensor, labels: Tensor) -> Tensor:
        device = self.processes.device
        images = images.to(device, non_blocking=True)
        labels = labels.to(device, non_blocking=True)
        if self.mixup is not None:
            images, labels = self.mixup(images, labels)
        with autocast(device, self.config.amp):
            logits = self.parallel(images)
        smoothing = self.recipe.label_smoothing
        loss = F.cross_entropy(logits.float(), labels, label_smoothing=smoothing)
        self.optimizer.zero_grad()
        self.scaler.scale(loss).backward()
        self.scaler.step(self.optimizer)
        self.scaler.update()
        self.updates += 1
        self.scheduler.step_update(self.updates)
        if self.ema is not None:
            self.ema.update(self.model, step=self.updates)
        return loss.detach()

    def _evaluate(self) -> dict[str, float]:
        metrics = {}
        networks = {"": self.model}
        if self.ema is not None:
            networks["ema_"] = self.ema.module
        for prefix, network in networks.items():
            if self.processes.count > 1:  # their BN statistics are of different images
                distribute_bn(network, self.processes.count, reduce=True)
            found = evaluate(network, self.val_loader, self.processes, self.config.amp)
            metrics.update({prefix + key: value for key, value in found.items()})
        return metrics

    def _save(self) -> None:
        line = self.history[-1]
        averaged = line.get("ema_top1", -1.0) > line.get("top1", -1.0)
        prefix = "ema_" if averaged else ""
        ema = None if self.ema is None else self.ema.module.state_dict()
        config = self.config
        values = {
            "model": config.model,
            "dataset": config.dataset,
            "num_classes": config.num_classes,
            "image_size": self.recipe.image_size,
            "weights": "moving average" if averaged else "network",
            "epoch": self.epoch,
        }
        for key in ("top1", "top5"):
            if prefix + key in line:  # not where a picture stopped the evaluation
                values[key] = f"{line[prefix + key]:.2f}"
        if config.model_kwargs:
            values["model_kwargs"] = dict(config.model_kwargs)
        training = {
            "model": self.model.state_dict(),
            "ema": ema,
            "optimizer": self.optimizer.state_dict(),
            "scaler": self.scaler.state_dict(),
            "updates": self.updates,
            "history": self.history,
            "config": config.record(),
            "threads": torch.get_num_threads(),
        }
        content = {
            "state_dict": ema if averaged else training["model"],
            "meta": describe(self.preprocessing, values),
            "training": training,
        }
        tops = [max(e.get("top1", -1.0), e.get("ema_top1", -1.0)) for e in self.history]
        best = tops[-1] > max(tops[:-1], default=-1.0)
        write_checkpoint(self.output / "last.pth", content, best=best)

    def _summary(self, line: dict[str, Any]) -> str:
        ema = f" (average {line['ema_top1']:.2f})" if self.ema is not None else ""
        return (
            f"epoch {self.epoch}/{self.recipe.epochs}: loss {line['loss']:.4f}, "
            f"top-1 {line['top1']:.2f}{ema}, top-5 {line['top5']:.2f}, "
            f"{line['images_per_second']:.0f} images/s"
        )

    def _resume(self, path: str | Path) -> None:
        """Continue a run from a checkpoint.

        Raises:
            FileNotFoundError, ValueError: see the class.
        """
        content = read_checkpoint(path).get("training")
        if content is None:
            raise ValueError(f"{path} holds only weights, so no run can be resumed from it")
        # Checkpoints of earlier versions have neither.
        added: dict[str, Any] = {"model_kwargs": {}, "weights": None}
        here, there = self.config.record(), {**added, **content["config"]}
        differing = [key for key in {**here, **there} if here.get(key) != there.get(key)]
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
        self.epoch = self.history[-1]["epoch"]
        self.updates = content["updates"]
        self.scheduler.step_update(self.updates)
