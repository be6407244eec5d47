"""How many images are enough, and what labels are worth: label-free PTQ and QAT beside labelled, in one table.

    python scripts/images_table.py --weights best.pt --data data.yaml --out runs/images --set model.imgsz=[384,640]

Every row is measured on its exported file for OpenVINO, against the labels that people made of the val split, and
compared with FP32 by a paired bootstrap over the images. Two tables, ``--part`` chooses one:

images  So many of the training images, evenly spaced, are all that there is: the last fifth is held out for the choice
        of the best epoch, the rest calibrates and trains. Label-free, that is ``--data list.txt``; labelled, the same
        two parts with people's labels. Calibration reads no labels. Every QAT takes the same number of steps.
seeds   One epoch on all training images with several seeds: label-free as above, and labelled as usual, trained on all
        of them with the best epoch chosen by mAP on the val split. Each pair of files is compared.

Rows that OUT has already are kept, so a killed run goes on.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import mean

import click
import yaml

from trt_qat.artifacts import write_json, write_text
from trt_qat.config import Config
from trt_qat.data.dataset import Dataset, load_dataset
from trt_qat.data.images import evenly_spaced
from trt_qat.footage.frames import held_out_count
from trt_qat.results import read_rows

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))
from scripts.accuracy_table import Row, Table, cells, read_table, run, sets

FAST = ("evaluation.latency_iterations=3", "evaluation.latency_warmup=0")  # these tables are about accuracy
ARMS = ("label-free", "labelled")


@dataclass(frozen=True)
class Setting:
    """What every row has in common."""

    weights: Path
    data: Path
    dataset: Dataset
    out: Path
    keys: tuple[str, ...]
    batch: int

    def run(self, *arguments: object, keys: Sequence[str] = ()) -> str:
        """Run a trt-qat command in a process of its own; returns the command as text."""
        return run(*arguments, *sets([*self.keys, *keys]))

    def measured(self, name: str, checkpoint: Path, commands: Sequence[str] = ()) -> Row:
        """Export for OpenVINO and evaluate against people's labels."""
        file, result = self.out / f"{_plain(name)}.onnx", self.out / "evaluation.json"
        exported = self.run("export", checkpoint, "--target", "openvino", "--out", file)
        evaluated = self.run("evaluate", file, "--data", self.data, "--details", "--json", result, keys=FAST)
        (row,) = read_rows(result)
        return Row(name=name, result=row, commands=(*commands, exported, evaluated))

    def listed(self, name: str, images: Sequence[Path]) -> Path:
        """A list of images."""
        file = self.out / f"{name}.txt"
        write_text(file, "".join(f"{image}\n" for image in images))
        return file


def ptq(name: str, setting: Setting, data: Path) -> Row:
    """Calibrated, not trained."""
    file = setting.out / f"{_plain(name)}.safetensors"
    command = setting.run("calibrate", "--weights", setting.weights, "--data", data, "--out", file)
    return setting.measured(name, file, [command])


def qat(name: str, setting: Setting, data: Path, epochs: int, seed: int) -> Row:
    """Fine-tuned."""
    folder = setting.out / _plain(name)
    keys = (f"qat.batch={setting.batch}", f"qat.seed={seed}")
    start = ("qat", "--weights", setting.weights, "--data", data, "--epochs", epochs, "--resume", "--out", folder)
    return setting.measured(name, folder / "best.safetensors", [setting.run(*start, keys=keys)])


def image_rows(setting: Setting, counts: Sequence[int], steps: int) -> Iterator[tuple[str, Callable[[], Row]]]:
    """The rows of ``images``: their names and how each is made."""
    for count in counts:
        images = evenly_spaced(setting.dataset.train, count)
        held = held_out_count(len(images), Config().data.held_out)
        every = setting.listed(f"all_{count}", images)
        of_people = setting.out / f"labelled_{count}.yaml"
        content = {
            "train": str(setting.listed(f"train_{count}", images[:-held]).resolve()),
            "val": str(setting.listed(f"val_{count}", images[-held:]).resolve()),
            "names": dict(setting.dataset.names),
        }
        write_text(of_people, yaml.safe_dump(content))
        epochs = max(1, round(steps / -(-(count - held) // setting.batch)))
        yield f"PTQ {count}", lambda count=count, every=every: ptq(f"PTQ {count}", setting, every)
        for arm, data in zip(ARMS, (every, of_people), strict=True):
            name = f"QAT {count} {arm}"
            yield name, lambda name=name, data=data, epochs=epochs: qat(name, setting, data, epochs, 0)


def seed_rows(setting: Setting, seeds: Sequence[int]) -> Iterator[tuple[str, Callable[[], Row]]]:
    """The rows of ``seeds``."""
    every = setting.listed("all", setting.dataset.train)
    for seed in seeds:
        for arm, data in zip(ARMS, (every, setting.data), strict=True):
            name = f"QAT seed {seed} {arm}"
            yield name, lambda name=name, data=data, seed=seed: qat(name, setting, data, 1, seed)


def as_markdown(table: dict[str, Row], seeds: Sequence[int]) -> str:
    """The rows against FP32, each seed's label-free file against its labelled one, and the commands."""
    base = table["FP32"].result
    lines = ["| | mAP50-95 | mAP50 | points against FP32 | 95 % of resamples |", "|---|---|---|---|---|"]
    lines += [f"| {name} | {' | '.join(cells(row.result, base))} |" for name, row in table.items()]
    pairs = {}
    for seed in seeds:
        free, labelled = (table.get(f"QAT seed {seed} {arm}") for arm in ARMS)
        if free and labelled:
            pairs[seed] = cells(free.result, labelled.result)[2:]
    if pairs:
        lines += ["", "| label-free against labelled | points | 95 % of resamples |", "|---|---|---|"]
        lines += [f"| seed {seed} | {' | '.join(pair)} |" for seed, pair in pairs.items()]
        lines += [f"\nMean: {mean(float(pair[0]) for pair in pairs.values()):+.2f} points."]
    for name, row in table.items():
        lines += [f"\n{name}:", *(f"    {command}" for command in row.commands)]
    return "\n".join(lines) + "\n"


def _plain(name: str) -> str:
    return name.lower().replace(" ", "_").replace("-", "_")


@click.command()
@click.option("--weights", type=click.Path(exists=True, path_type=Path), required=True)
@click.option("--data", type=click.Path(exists=True, path_type=Path), required=True, help="With labels of people.")
@click.option("--out", type=click.Path(path_type=Path), required=True)
@click.option("--part", type=click.Choice(["images", "seeds"]), default="images", show_default=True)
@click.option("--counts", default="16,64,256,1024", show_default=True, help="Images, of part images.")
@click.option("--steps", default=145, show_default=True, help="Of every QAT of part images, in whole epochs.")
@click.option("--seeds", default="0,1,2", show_default=True, help="Of part seeds.")
@click.option("--batch", default=8, show_default=True)
@click.option("--set", "keys", multiple=True, help="Settings of every command, as in trt-qat.")
def main(
    weights: Path,
    data: Path,
    out: Path,
    part: str,
    counts: str,
    steps: int,
    seeds: str,
    batch: int,
    keys: tuple[str, ...],
) -> None:
    """Make one of the tables."""
    out.mkdir(parents=True, exist_ok=True)
    shared = (f"data.calibration_cache={out / 'calib'}", *keys)
    setting = Setting(weights, data, load_dataset(data), out, shared, batch)
    of_seeds = [int(seed) for seed in seeds.split(",")]
    wanted = {
        "images": lambda: image_rows(setting, [int(count) for count in counts.split(",")], steps),
        "seeds": lambda: seed_rows(setting, of_seeds),
    }
    file = out / f"{part}.json"
    table: dict[str, Row] = {}
    if file.is_file():
        table = {row.name: row for row in read_table(file).rows}
    for name, make in (("FP32", lambda: setting.measured("FP32", weights)), *wanted[part]()):
        if name in table:
            continue
        table[name] = make()
        click.echo(f"== {name}: {table[name].result.map50_95:.4f}")
        write_json(file, Table(rows=tuple(table.values())).model_dump(mode="json"))
        write_text(out / f"{part}.md", as_markdown(table, of_seeds))


if __name__ == "__main__":
    main()
