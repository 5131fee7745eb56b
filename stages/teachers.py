"""Stage teachers: the frozen networks that students learn from, and the weights that students start from.

Writes to teachers/<teacher>/: weights.pt (a state dict) and teacher.json (kind, class names, and either origin and
checksum or held-out accuracy). A teacher of kind `truth` has no network: its teacher.json has its kind and column.
A teacher with several draws has both files for each (avdistill/data/draws.py).

`weights: avsynth` pre-trains a small network on synthetic sounds, images or motions of other categories than the
actions. A name such as `panns:Cnn14_mAP=0.431` or `torchvision:resnet50` downloads a published checkpoint
(avdistill/data/sources/weights.py). Any other value is the path of a checkpoint in the layout of PANNs (cnn14) or
torchvision (ResNets).
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from pickle import UnpicklingError
from typing import Any
from zipfile import is_zipfile

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from avdistill.config.schema import Params, Teacher
from avdistill.config.types import STUDENTS
from avdistill.data.draws import of_draw
from avdistill.data.files import intact, write_json
from avdistill.data.loader import NORMALISATION, to_input
from avdistill.data.sources import weights
from avdistill.data.sources.http import DownloadError
from avdistill.data.synthesis import pretraining
from avdistill.pipeline.devices import resolve_device
from avdistill.pipeline.errors import UserError
from avdistill.pipeline.progress import progress
from avdistill.pipeline.stage import Stage
from avdistill.training.precision import make_deterministic
from avdistill.training.tensors import save_tensors
from models import teachers
from models.students import Student, build_student
from models.teachers import Teacher as Network
from models.teachers import build_teacher
from models.teachers.cnn14 import Cnn14, load_panns

# Pre-training of the small teachers: moderate accuracy within half a minute on one core.
HELD_OUT, SECONDS, BATCH, LEARNING_RATE = 200, 1.0, 16, 1e-3
# Globals in the pickle of a numeric array, functions under both their NumPy 1 and NumPy 2 names.
NUMPY_ARRAYS: list[Any] = [
    *((np.ones(1).__reduce__()[0], f"numpy.{core}.multiarray._reconstruct") for core in ("core", "_core")),
    *((np.float64(1).__reduce__()[0], f"numpy.{core}.multiarray.scalar") for core in ("core", "_core")),
    np.ndarray,
    np.dtype,
    *(type(np.dtype(name)) for name in ("bool", "int32", "int64", "uint32", "float32", "float64")),
]
IMAGE_SIZE = {"resnet10": 32, "resnet34": 224, "resnet50": 224}


def network(teacher: Teacher, classes: int) -> Network | Student:
    """Build the network of a teacher, or a student to start from, with random weights."""
    if teacher.kind in STUDENTS:
        return build_student(teacher.kind, classes, teacher.width)
    return build_teacher(teacher.kind, classes=classes, width=teacher.width, embedding=teacher.embedding)


def head(model: Network | Student) -> nn.Linear:
    """Return the layer that outputs the logits of the teacher's own classes."""
    return model.fc_audioset if isinstance(model, Cnn14) else model.fc


def image_input(frames: Tensor) -> Tensor:
    """Convert frames (N, S, S, 3) uint8 to the input of image teachers: (N, 3, S, S) with ImageNet normalisation."""
    mean, std = (torch.tensor(values, device=frames.device) * 255 for values in NORMALISATION["imagenet"])
    return ((frames.float() - mean) / std).permute(0, 3, 1, 2)


def pretraining_set(teacher: Teacher) -> tuple[Tensor, Tensor, list[str]]:
    """Return inputs, labels and class names of the synthetic pre-training sounds, images or motions."""
    count = teacher.examples + HELD_OUT
    if teacher.kind == "cnn14":
        from models.logmel import log_mel

        sounds, labels, names = pretraining.generic_sounds(count, SECONDS, teacher.seed)
        inputs = torch.cat([log_mel(torch.from_numpy(chunk)) for chunk in np.array_split(sounds, 16)])
    elif teacher.kind in STUDENTS:
        clips, labels, names = pretraining.generic_motions(count, teacher.seed)
        inputs = to_input(torch.from_numpy(clips), "imagenet")
    else:
        images, labels, names = pretraining.generic_images(count, IMAGE_SIZE[teacher.kind], teacher.seed)
        inputs = image_input(torch.from_numpy(images))
    return inputs, torch.from_numpy(np.asarray(labels, dtype=np.int64)), list(names)


def pretrain(teacher: Teacher, device: str) -> Iterator[tuple[Network | Student, list[str], dict[str, float]]]:
    """Train a small network; yield it after each epoch with its class names, loss and held-out accuracy."""
    inputs, labels, names = pretraining_set(teacher)
    make_deterministic()
    torch.manual_seed(teacher.seed)
    model = network(teacher, len(names)).to(device)
    optimizer = torch.optim.Adam(model.parameters(), lr=LEARNING_RATE)
    batches = teacher.examples // BATCH
    schedule = torch.optim.lr_scheduler.OneCycleLR(
        optimizer, max_lr=3 * LEARNING_RATE, total_steps=teacher.epochs * batches
    )
    for epoch in range(teacher.epochs):
        model.train()
        total = 0.0
        order = np.random.default_rng((teacher.seed, epoch)).permutation(teacher.examples)[: batches * BATCH]
        for rows in order.reshape(batches, BATCH):
            loss = F.cross_entropy(model(inputs[rows].to(device)).logits, labels[rows].to(device))
            optimizer.zero_grad(set_to_none=True)
            loss.backward()
            optimizer.step()
            schedule.step()
            total += float(loss.detach())
        model.eval()
        with torch.inference_mode():
            held = [model(part.to(device)).logits.argmax(1).cpu() for part in inputs[teacher.examples :].split(BATCH)]
        accuracy = float((torch.cat(held) == labels[teacher.examples :]).float().mean())
        yield model, names, {"loss": total / batches, "held_out_accuracy": accuracy}


def network_of(kind: str, state: Mapping[str, Tensor]) -> Network:
    """Build a network with random weights and the classes, width and embedding of a state dict."""
    if kind == "cnn14":
        width = len(state["conv_block1.bn1.bias"]) / 64
        return build_teacher(kind, len(state["fc_audioset.bias"]), width, len(state["fc1.bias"]))
    return build_teacher(kind, len(state["fc.bias"]), len(state["bn1.bias"]) / 64)


def load_checkpoint(teacher: Teacher, path: Path) -> Network:
    """Load a published checkpoint. Raises UserError with the file if it is missing, damaged or does not fit.

    Only tensors and numeric arrays, which PANNs' checkpoints contain for their sampler, are unpickled."""
    try:
        if is_zipfile(path) and not intact(path):  # torch.load does not verify; older, non-zip files have no checksums
            raise ValueError("damaged: an entry is missing, or its checksum differs")
        with torch.serialization.safe_globals(NUMPY_ARRAYS):
            state: dict[str, Any] = torch.load(path, map_location="cpu", weights_only=True)
        state = state.get("model", state)
        model = network_of(teacher.kind, state)
        if isinstance(model, Cnn14):
            load_panns(model, state)
        else:
            model.load_state_dict(state)
    except FileNotFoundError:
        raise UserError(f"{path}: no such file; expected a checkpoint") from None
    except UnpicklingError:
        raise UserError(f"{path}: not a {teacher.kind} checkpoint (expected only tensors and numbers)") from None
    except Exception as error:  # noqa: BLE001 - torch raises many types for foreign files
        reason = str(error).splitlines() or [type(error).__name__]
        raise UserError(f"{path}: not a {teacher.kind} checkpoint ({reason[0]})") from None
    return model


def download(teacher: Teacher, params: Params) -> tuple[Path, dict[str, str]]:
    """Download a published checkpoint; the error of suite own also names the way without one."""
    try:
        return weights.download(teacher)
    except DownloadError as error:
        if params.suite.file != "own/params.yaml":
            raise
        instead = "use a small teacher of generated sounds: make own VIDEOS=… TEACHER=avsynth"
        raise UserError(f"{error}, or {instead}") from None


def class_names(count: int) -> list[str]:
    """Return the class names of AudioSet (527 classes) or ImageNet (1000); empty for other numbers."""
    if count == 527:
        lines = Path(teachers.__file__).with_name("audioset_classes.txt").read_text(encoding="utf-8").splitlines()
        return [line for line in lines if not line.startswith("#")]
    if count == 1000:
        from torchvision.models import ResNet50_Weights

        return list(ResNet50_Weights.IMAGENET1K_V1.meta["categories"])
    return []


def main(stage: Stage) -> None:
    """Pre-train or load one teacher. An interrupted execution resumes after the completed draws."""
    teacher = stage.params.teachers[stage.item or ""]
    if teacher.kind == "truth":
        stage.run.log_params({"teacher": teacher.model_dump()})
        with stage.output() as folder:
            write_json(folder / "teacher.json", {"kind": teacher.kind, "column": teacher.column})
        return
    device = resolve_device(stage.params.device)
    torch.set_num_threads(2)  # fixed, because results depend on the number of threads
    stage.run.log_params({"teacher": teacher.model_dump(), "device": device})
    origin: dict[str, str] = {}
    with stage.output(key=teacher.model_dump_json()) as folder:
        descriptions = [folder / of_draw(draw) / "teacher.json" for draw in range(teacher.draws)]
        for draw, description in enumerate(descriptions):
            if teacher.draws > 1 and description.exists():
                continue
            measured: dict[str, float] = {}
            if teacher.weights == "avsynth":
                drawn = teacher.model_copy(update={"seed": teacher.seed + draw})
                epochs = progress(pretrain(drawn, device), "pre-train", teacher.epochs)
                for epoch, found in enumerate(epochs, start=1):
                    model, names, measured = found
                    stage.run.log_metrics({of_draw(draw) + key: value for key, value in measured.items()}, step=epoch)
            else:
                path = Path(teacher.weights)
                if teacher.weights in weights.CHECKPOINTS:
                    path, origin = download(teacher, stage.params)
                model = load_checkpoint(teacher, path)
                names = class_names(head(model).out_features)
            state = {name: value.cpu() for name, value in model.state_dict().items()}
            save_tensors(description.with_name("weights.pt"), state)
            about = {"kind": teacher.kind, "feature_dim": model.feature_dim, "classes": names, **origin, **measured}
            write_json(description, about)
    stage.run.log_params(origin)
