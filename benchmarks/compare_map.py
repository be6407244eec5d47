"""Is the mAP of two exported files different by more than chance?

    python benchmarks/compare_map.py square.onnx rectangle.onnx --data data.yaml

mAP as `trt-qat evaluate` counts it, and a paired bootstrap over the images of the val split.
"""

from __future__ import annotations

from pathlib import Path

import click

from trt_qat.config import EvaluationSection
from trt_qat.data.dataset import load_dataset
from trt_qat.evaluation.accuracy import MatchedImage, match_images, mean_average_precision
from trt_qat.evaluation.bootstrap import map_difference
from trt_qat.runtime.runner import class_names
from trt_qat.runtime.selection import open_runner


@click.command()
@click.argument("first", type=click.Path(path_type=Path))
@click.argument("second", type=click.Path(path_type=Path))
@click.option("--data", type=click.Path(path_type=Path), required=True, help="data.yaml; its val images are used.")
@click.option("--runtime", default="openvino", show_default=True)
@click.option("--resamples", default=1000, show_default=True)
def main(first: Path, second: Path, data: Path, runtime: str, resamples: int) -> None:
    """Print both mAP50-95 and their difference, in points."""
    found = [matched(file, data, runtime) for file in (first, second)]
    whole = [100 * mean_average_precision(images)[0] for images in found]
    difference = map_difference(found[0], found[1], resamples)
    click.echo(f"{first.name} {whole[0]:.2f}, {second.name} {whole[1]:.2f} on {len(found[0])} images: {difference}")


def matched(file: Path, data: Path, runtime: str) -> list[MatchedImage]:
    """What decides mAP, for each image."""
    with open_runner(file, runtime) as runner:
        return match_images(runner, load_dataset(data, class_names(runner.metadata) or None), EvaluationSection())[0]


if __name__ == "__main__":
    main()
