"""Is the mAP of two exported files different by more than chance? A paired bootstrap over the images of the val split.

    python scripts/compare_map.py square.onnx rectangle.onnx --data data.yaml

Both files are evaluated on the same images (`trt-qat evaluate`'s figures); then images are drawn with replacement, as
many as there are, the same for both, and mAP50-95 is computed of what either found in them.
"""

from __future__ import annotations

from pathlib import Path

import click
import numpy as np

from trt_qat.config import EvaluationSection
from trt_qat.data.dataset import load_dataset
from trt_qat.evaluation.accuracy import MatchedImage, match_images, mean_average_precision
from trt_qat.runtime.runner import class_names
from trt_qat.runtime.selection import open_runner


@click.command(help=__doc__)
@click.argument("first", type=click.Path(path_type=Path))
@click.argument("second", type=click.Path(path_type=Path))
@click.option("--data", type=click.Path(path_type=Path), required=True)
@click.option("--runtime", default="openvino", show_default=True)
@click.option("--draws", default=1000, show_default=True)
def main(first: Path, second: Path, data: Path, runtime: str, draws: int) -> None:
    """Print both figures, their difference and its 95 % interval, in points."""
    found = [matched(file, data, runtime) for file in (first, second)]
    whole = [100 * mean_average_precision(images)[0] for images in found]
    random = np.random.default_rng(0)
    differences = []
    for _ in range(draws):
        drawn = random.integers(0, len(found[0]), len(found[0]))
        a, b = (mean_average_precision([images[index] for index in drawn])[0] for images in found)
        differences.append(100 * (b - a))
    low, high = np.percentile(differences, [2.5, 97.5])
    click.echo(
        f"{first.name} {whole[0]:.2f}, {second.name} {whole[1]:.2f} on {len(found[0])} images: "
        f"{whole[1] - whole[0]:+.2f} points, 95 % of {draws} draws between {low:+.2f} and {high:+.2f}"
    )


def matched(file: Path, data: Path, runtime: str) -> list[MatchedImage]:
    """What each image adds to mAP."""
    with open_runner(file, runtime) as runner:
        return match_images(runner, load_dataset(data, class_names(runner.metadata) or None), EvaluationSection())[0]


if __name__ == "__main__":
    main()
