"""Draw docs/images/tracked.gif: the generated street through the shipped detector, tracked and counted.

python scripts/tracked_gif.py [OUT]
"""

from __future__ import annotations

import sys
import tempfile
from pathlib import Path

import cv2
import numpy as np
from numpy.typing import NDArray
from PIL import Image

from trt_qat.demo.clip import CLIP_FPS, street_clip
from trt_qat.demo.model import export_demo_model
from trt_qat.runtime.counting import Counter
from trt_qat.runtime.detector import Detector
from trt_qat.runtime.frames import Frame
from trt_qat.runtime.tracking import Tracker, detector_conf
from trt_qat.vision.draw import Painter
from trt_qat.vision.regions import parse_regions

OUT = Path("docs/images/tracked.gif")
LINES = ("left:0.16,0.8,0.16,0.1", "right:0.84,0.1,0.84,0.8")
FRAMES, EVERY, COLORS, COLORFUL, WIDTH = 144, 2, 96, 120, 640
CONF = 0.25


def main() -> None:
    """Write the picture."""
    out = Path(sys.argv[1]) if len(sys.argv) > 1 else OUT
    with tempfile.TemporaryDirectory() as folder:
        model = export_demo_model(Path(folder) / "demo_int8.onnx").path
        pictures = _pictures(model)
    # one palette for all, so that no colour flickers; what is small and colourful (signs, labels) counts as much as sky
    sample = np.vstack(pictures[:: len(pictures) // 12]).reshape(-1, 3)
    colorful = sample[np.ptp(sample.astype(int), axis=1) > COLORFUL]
    weighed = np.vstack([sample[:: max(1, len(sample) // len(colorful))], colorful, colorful])[:, None]
    palette = Image.fromarray(np.ascontiguousarray(weighed)).quantize(COLORS)
    frames = [Image.fromarray(picture).quantize(palette=palette, dither=Image.Dither.NONE) for picture in pictures]
    milliseconds = round(1000 * EVERY / CLIP_FPS)
    frames[0].save(out, save_all=True, append_images=frames[1:], duration=milliseconds, loop=0, optimize=True)
    print(f"Written: {out} ({len(frames)} frames, {out.stat().st_size:,} bytes)")


def _pictures(model: Path) -> list[NDArray[np.uint8]]:
    """Every second frame, RGB; all of them are tracked."""
    regions = parse_regions(LINES)
    tracker, counter = Tracker(CONF, {"street": CLIP_FPS}), Counter(regions)
    pictures = []
    with Detector(model, conf=detector_conf(CONF)) as detect:
        painter = Painter(detect.names, regions)
        for number, (image, _) in enumerate(street_clip(FRAMES)):
            frame = Frame(image, "street", number, number / CLIP_FPS)
            found = tracker.update(frame, detect(image))
            counts = counter.update(frame, found)
            drawn = painter.draw(image, found, counts, frame.source)
            if number % EVERY == 0:
                height = round(WIDTH * drawn.shape[0] / drawn.shape[1])
                small = cv2.resize(drawn, (WIDTH, height), interpolation=cv2.INTER_AREA)
                pictures.append(np.asarray(cv2.cvtColor(small, cv2.COLOR_BGR2RGB), np.uint8))
    return pictures


if __name__ == "__main__":
    main()
