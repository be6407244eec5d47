"""DeepStream with DeepStream-Yolo's parser: one row per anchor, key files for nvinfer and deepstream-app.

Sources: marcoslucianops/DeepStream-Yolo, commit 2ccf529: config_infer_primary_yoloV8.txt and deepstream_app_config.txt
(keys), nvdsinfer_custom_impl_Yolo/nvdsparsebbox_Yolo.cpp (reads x1, y1, x2, y2, score, class of each row of the first
output), docs/YOLOv8.md (the build line). DeepStream SDK: sources/gst-plugins/gst-nvinfer/gstnvinfer_property_parser.h
(every key), sources/libs/nvdsinfer/nvdsinfer_context_impl.cpp (a line of labels is cut at ";") and
nvdsinfer_model_builder.cpp (without an engine and a calibration file it builds FP16 where INT8 was asked for).
"""

from __future__ import annotations

from pathlib import Path
from typing import Final

import onnx

from trt_qat.config import InferSection
from trt_qat.deploy.base import Deployment
from trt_qat.deploy.contents import engine_script, labels, write_file
from trt_qat.deploy.detector_file import DetectorFile
from trt_qat.engine.engine_file import PIXEL_SCALE
from trt_qat.errors import ConfigError
from trt_qat.onnx_reading import read_onnx

_SOURCE: Final = "https://github.com/marcoslucianops/DeepStream-Yolo (commit 2ccf529)"
_LIBRARY: Final = "DeepStream-Yolo/nvdsinfer_custom_impl_Yolo"
_MODES: Final = {"fp32": 0, "int8": 1, "fp16": 2}  # nvinfer's network-mode


def write(file: DetectorFile, section: InferSection, folder: Path) -> None:
    """NAME.onnx, labels.txt, config_infer_primary.txt, deepstream_app_config.txt, build_engine.sh and README.txt.

    Raises:
        ConfigError: a class name holds ``;``, which ends a label there, or the file has NMS or unsigned INT8.
    """
    from trt_qat.exporter.output_forms import one_row_per_anchor  # needs onnx_graphsurgeon

    file.require_raw("DeepStream")
    file.require_signed("DeepStream")
    broken = next((name for name in file.class_names if ";" in name), None)
    if broken is not None:
        raise ConfigError(f"DeepStream ends a label at ';', so the class '{broken}' cannot be named. Rename it.")
    onnx.save(one_row_per_anchor(read_onnx(file.path, external_data=True)), str(folder / f"{file.name}.onnx"))
    write_file(folder / "labels.txt", labels(file))
    write_file(folder / "config_infer_primary.txt", _infer_config(file, section))
    write_file(folder / "deepstream_app_config.txt", _app_config(file))
    write_file(folder / "build_engine.sh", engine_script(file))
    write_file(folder / "README.txt", _readme(file))


def _infer_config(file: DetectorFile, section: InferSection) -> str:
    mode = _MODES.get(file.precision.partition("+")[0], 0)
    return f"""# Gst-nvinfer configuration of '{file.name}', {file.precision}, {file.size[1]}x{file.size[0]} pixels.
# Keys: config_infer_primary_yoloV8.txt of {_SOURCE};
# scaling-filter: DeepStream SDK, gstnvinfer_property_parser.h. Paths are relative to this file.
[property]
gpu-id=0
# pixels are divided by 255, in RGB (0), on a border that keeps the picture in the middle
net-scale-factor={PIXEL_SCALE!r}
model-color-format=0
maintain-aspect-ratio=1
symmetric-padding=1
# 1 is bilinear, as the network was calibrated; nvinfer's border is black, trt_qat's is gray
scaling-filter=1
onnx-file={file.name}.onnx
# made by build_engine.sh; without it nvinfer builds one itself, which does not keep the precision that the file has
model-engine-file={file.name}.engine
labelfile-path=labels.txt
# the number of sources{f", at most {file.batches[2]}: the engine takes no more" if file.dynamic else ""}
batch-size={file.batches[1]}
# 0 FP32, 1 INT8, 2 FP16
network-mode={mode}
num-detected-classes={len(file.class_names)}
interval=0
gie-unique-id=1
process-mode=1
network-type=0
# 2: nvinfer suppresses boxes by the thresholds below; 4: it does not, as an end-to-end detector wants it
cluster-mode={4 if file.layout == "nms_free" else 2}
parse-bbox-func-name=NvDsInferParseYolo
custom-lib-path={_LIBRARY}/libnvdsinfer_custom_impl_Yolo.so
engine-create-func-name=NvDsInferYoloCudaEngineGet

[class-attrs-all]
nms-iou-threshold={section.iou}
pre-cluster-threshold={section.conf}
topk={section.max_det}
"""


def _app_config(file: DetectorFile) -> str:
    return f"""# deepstream-app on one source, shown on the screen. Keys: deepstream_app_config.txt of
# {_SOURCE}.
[application]
enable-perf-measurement=1
perf-measurement-interval-sec=5

[source0]
enable=1
# 1 camera (V4L2), 2 URI, 3 several URIs, 4 RTSP, 5 camera (CSI)
type=3
uri=file:///opt/nvidia/deepstream/deepstream/samples/streams/sample_1080p_h264.mp4
num-sources=1
gpu-id=0

[sink0]
enable=1
# 1 none, 2 screen, 3 file, 4 RTSP
type=2
sync=0
gpu-id=0

[osd]
enable=1
gpu-id=0
border-width=3
text-size=15
text-color=1;1;1;1;
text-bg-color=0.3;0.3;0.3;1
font=Serif

[streammux]
gpu-id=0
# 1 for cameras and RTSP
live-source=0
batch-size={file.batches[1]}
batched-push-timeout=40000
width=1920
height=1080

[primary-gie]
enable=1
gpu-id=0
gie-unique-id=1
config-file=config_infer_primary.txt

[tests]
file-loop=0
"""


def _readme(file: DetectorFile) -> str:
    return f"""'{file.name}' for NVIDIA DeepStream, with the parser of DeepStream-Yolo.

In this folder, on the machine with DeepStream:

1. The parser, {_LIBRARY}/libnvdsinfer_custom_impl_Yolo.so.
   CUDA_VER is that of the DeepStream (7.1: 12.6; 7.0 and 6.4: 12.2; DeepStream-Yolo's docs/YOLOv8.md lists them):

       git clone https://github.com/marcoslucianops/DeepStream-Yolo
       git -C DeepStream-Yolo checkout 2ccf529
       CUDA_VER=12.6 make -C {_LIBRARY}

2. The engine, {file.name}.engine, on the GPU that will run it:

       sh build_engine.sh

3. A picture: set uri in deepstream_app_config.txt, then

       deepstream-app -c deepstream_app_config.txt

The ONNX file is the exported one with another output, 'output' (batch, {file.output[1]}, 6): x1, y1, x2, y2, score,
class of each anchor. Everything before it is unchanged. trt_qat's border is gray (114), nvinfer's is black.

Parsed and computed by trt_qat's tests, but not run in DeepStream: no such machine was at hand.
"""


DEPLOYMENT = Deployment(
    name="deepstream",
    summary="NVIDIA DeepStream, with DeepStream-Yolo's parser.",
    takes=("onnx",),
    write=write,
    next_step="README.txt in it has the lines that build the parser and the engine.",
    not_run="Not run in DeepStream, which is not here: the files are parsed and the ONNX file is computed in tests.",
)
