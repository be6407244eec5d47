"""Triton Inference Server: a model repository of one model, and a client.

Sources: triton-inference-server/server, docs/user_guide/model_repository.md (NAME/config.pbtxt, NAME/1/model.onnx or
model.plan) and model_configuration.md (max_batch_size 0 where the first axis is not a batch that may vary; dims without
the batch else; dynamic_batching); the fields are those of triton-inference-server/common, protobuf/model_config.proto,
against which a test parses the file.
"""

from __future__ import annotations

import json
from pathlib import Path

from trt_qat.config import InferSection
from trt_qat.deploy.base import Deployment
from trt_qat.deploy.contents import copy_model, labels, write_file
from trt_qat.deploy.detector_file import DetectorFile
from trt_qat.errors import ConfigError

_BACKENDS = {"onnx": "onnxruntime", "plan": "tensorrt"}


def write(file: DetectorFile, section: InferSection, folder: Path) -> None:
    """NAME/1/model.onnx or model.plan, NAME/config.pbtxt, NAME/labels.txt, client.py and README.txt.

    Raises:
        ConfigError: the batch is fixed at more than one image.
    """
    if not file.dynamic and file.batches[0] != 1:
        raise ConfigError(
            f"'{file.path}' takes {file.batches[0]} images at once, no more and no fewer, which no server can promise. "
            "Export it with --set export.dynamic_batch=true."
        )
    model = folder / file.name
    copy_model(file, model / "1" / f"model.{file.kind}")
    write_file(model / "config.pbtxt", _config(file))
    write_file(model / "labels.txt", labels(file))
    write_file(folder / "client.py", _client(file, section))
    write_file(folder / "README.txt", _readme(file))


def _config(file: DetectorFile) -> str:
    height, width = file.size
    one = [] if file.dynamic else [1]
    image, output = [*one, 3, height, width], [*one, *file.output]
    batching = (
        """
# requests that come within this time are computed together
dynamic_batching {
  max_queue_delay_microseconds: 1000
}
"""
        if file.dynamic
        else "\n# the batch of the file is fixed, so requests are computed one by one\n"
    )
    return f"""# '{file.name}', {file.precision}: images in [0, 1], RGB, letterboxed to {width}x{height}.
# Fields: triton-inference-server/common, protobuf/model_config.proto.
name: {_quoted(file.name)}
backend: {_quoted(_BACKENDS[file.kind])}
max_batch_size: {file.batches[2] if file.dynamic else 0}
input [
  {{
    name: {_quoted(file.input_name)}
    data_type: TYPE_FP32
    dims: {image}
  }}
]
output [
  {{
    # {_meaning(file)}
    name: {_quoted(file.output_name)}
    data_type: TYPE_FP32
    dims: {output}
  }}
]
{batching.strip()}
"""


def _meaning(file: DetectorFile) -> str:
    if file.has_rows:
        return "rows of x1, y1, x2, y2, score, class id, best first, then zeros"
    return "box centre x, y, width, height, then a score per class"


def _quoted(text: str) -> str:
    """A string of protobuf's text format, which has JSON's escapes."""
    return json.dumps(text)


def _client(file: DetectorFile, section: InferSection) -> str:
    if file.has_rows:
        imports = ""
        decode = """    found = output[output[:, 4] > CONF]  # rows of zeros are none
    return transform.boxes_to_image(found[:, :4]), found[:, 4], found[:, 5].astype(int)
"""
        thresholds = f"CONF = {0 if file.nms else section.conf}\n"
    else:
        imports = "from trt_qat.vision.postprocess import detections_from_output\n"
        decode = f"""    found = detections_from_output(output, CONF, IOU, MAX_DET, layout={file.layout!r})
    return transform.boxes_to_image(found.boxes_xyxy), found.scores, found.class_ids
"""
        thresholds = f"CONF, IOU, MAX_DET = {section.conf}, {section.iou}, {section.max_det}\n"
    return f'''"""Detect objects with the model '{file.name}' on a Triton server, and print them.

    pip install trt_qat "tritonclient[grpc]"
    python client.py --url localhost:8001 street.jpg

Letterbox and NMS are trt_qat's own, so the boxes are those of `trt-qat infer`. Calls: tritonclient.grpc of
triton-inference-server/client, src/python/library.
"""

import argparse
from pathlib import Path

import tritonclient.grpc as triton

from trt_qat.vision.image import read_image_bgr
from trt_qat.vision.letterbox import network_input
{imports}
MODEL = {file.name!r}
INPUT, OUTPUT = {file.input_name!r}, {file.output_name!r}
SIZE = {tuple(file.size)!r}  # height, width
{thresholds}LABELS = Path(__file__).resolve().parent / MODEL / "labels.txt"


def detect(client, image_bgr):
    """Boxes (n, 4) in pixels of the image, scores (n,) and class ids (n,)."""
    batch, transform = network_input(image_bgr, SIZE)
    image = triton.InferInput(INPUT, list(batch.shape), "FP32")
    image.set_data_from_numpy(batch)
    answer = client.infer(MODEL, [image], outputs=[triton.InferRequestedOutput(OUTPUT)])
    output = answer.as_numpy(OUTPUT)[0]
{decode}

def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("images", nargs="+", type=Path)
    parser.add_argument("--url", default="localhost:8001", help="gRPC address of the server")
    given = parser.parse_args()
    names = LABELS.read_text(encoding="utf-8").splitlines()
    with triton.InferenceServerClient(given.url) as client:
        for path in given.images:
            boxes, scores, class_ids = detect(client, read_image_bgr(path))
            for box, score, class_id in zip(boxes, scores, class_ids):
                corners = " ".join(f"{{value:.1f}}" for value in box)
                print(f"{{path}} {{names[class_id]}} {{score:.3f}} {{corners}}")


if __name__ == "__main__":
    main()
'''


def _readme(file: DetectorFile) -> str:
    lines = "" if file.kind == "onnx" else "\nThe plan runs on the kind of GPU and with the TensorRT that built it.\n"
    return f"""'{file.name}' for NVIDIA Triton Inference Server: this folder is a model repository.

    tritonserver --model-repository=THIS_FOLDER
    python client.py --url localhost:8001 street.jpg        # pip install trt_qat "tritonclient[grpc]"

{file.name}/config.pbtxt has the model's shapes and how requests are joined into batches, {file.name}/labels.txt a class
name per line.
{lines}"""


DEPLOYMENT = Deployment(
    name="triton",
    summary="NVIDIA Triton Inference Server: a model repository and a client.",
    takes=("onnx", "plan"),
    write=write,
    next_step="tritonserver --model-repository=DIR; client.py in it asks the server.",
    not_run="Tried in Triton 2.51, but with its Python backend: ONNX Runtime's and TensorRT's are not here.",
)
