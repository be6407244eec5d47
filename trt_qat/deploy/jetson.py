"""A Jetson: `trt-qat infer` on a camera, in a container that systemd keeps running.

Sources: NVIDIA's image nvcr.io/nvidia/l4t-jetpack, CUDA and TensorRT of JetPack 6 with Python 3.10, by the name that
dusty-nv/jetson-containers gives (commit dd206bf, jetson_containers/l4t_version.py: r36.4.0 is JetPack 6.1); NVIDIA
Container Toolkit, "Specialized configurations" (--runtime nvidia); Docker's reference of `docker run` (--cap-drop,
--device, --group-add, --network, --read-only, --security-opt, --tmpfs); systemd.service(5) and systemd.unit(5).
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Final

from trt_qat.config import InferSection
from trt_qat.deploy.base import Deployment
from trt_qat.deploy.contents import copy_model, write_file
from trt_qat.deploy.detector_file import DetectorFile

BASE: Final = "nvcr.io/nvidia/l4t-jetpack:r36.4.0"
_USER: Final = 10001
_HOME: Final = "/opt/trt_qat"


def write(file: DetectorFile, section: InferSection, folder: Path) -> None:
    """The model, Dockerfile, run.sh, trt-qat-NAME.service, wheels/ for trt_qat itself, and README.txt.

    Raises:
        ConfigError: the file has NMS, which `infer` does itself, or unsigned INT8.
    """
    file.require_no_nms("`trt-qat infer`")
    file.require_signed("`trt-qat infer` on a Jetson")
    copy_model(file, folder / "model" / f"{file.name}.{file.kind}", sidecar=True)
    write_file(folder / "Dockerfile", _dockerfile())
    write_file(folder / "run.sh", _run(file, section))
    write_file(folder / f"{unit_name(file)}.service", _unit(file))
    write_file(folder / "wheels" / "README.txt", "A wheel of trt_qat goes here, see README.txt in the folder above.\n")
    write_file(folder / "README.txt", _readme(file))


def unit_name(file: DetectorFile) -> str:
    """Of the service, the image and the container; Docker wants lower case and single separators."""
    return f"trt-qat-{re.sub(r'[^a-z0-9]+', '-', file.name.lower()).strip('-')}"


def _dockerfile() -> str:
    return f"""# trt-qat infer on a Jetson with JetPack 6. The image has CUDA and TensorRT with its Python module; the
# driver comes from the host (--runtime nvidia). Its name is the one in dusty-nv/jetson-containers,
# jetson_containers/l4t_version.py (commit dd206bf).
ARG BASE={BASE}
FROM ${{BASE}}

# pycuda, of trt_qat[gpu], is compiled with the image's nvcc
# hadolint ignore=DL3008  # versions are those of the base image's Ubuntu
RUN apt-get update \\
    && apt-get install --yes --no-install-recommends build-essential python3-dev python3-pip \\
    && rm -rf /var/lib/apt/lists/*
ENV PATH=/usr/local/cuda/bin:${{PATH}}
COPY wheels /tmp/wheels
# hadolint ignore=DL3013  # the wheel in wheels/, where there is one, says the version
RUN python3 -m pip install --no-cache-dir --find-links /tmp/wheels "trt_qat[gpu]" \\
    && rm -rf /tmp/wheels

# no root: the group "video" may use the camera and the GPU
RUN useradd --uid {_USER} --groups video --no-create-home --shell /usr/sbin/nologin detector \\
    && install --directory --owner detector /data
COPY model {_HOME}/model
COPY run.sh {_HOME}/run.sh
USER {_USER}
WORKDIR /data
VOLUME /data
ENTRYPOINT ["/bin/sh", "{_HOME}/run.sh"]
CMD ["/dev/video0"]
"""


def _run(file: DetectorFile, section: InferSection) -> str:
    if file.kind == "onnx":
        # of another model comes another plan: the old one stays in the volume and is not used
        prepare = f"""MODEL=/data/{file.name}-{file.sha256[:12]}.plan
if [ ! -s "$MODEL" ]; then
    echo "Building the engine, once; this takes minutes."
    trt-qat engine {_HOME}/model/{file.name}.onnx --flavor tensorrt --out "$MODEL"
fi
"""
    else:
        prepare = f"MODEL={_HOME}/model/{file.name}.plan\n"
    return f"""#!/bin/sh
# Arguments: what `trt-qat infer` shall read, a camera or a stream. One JSON object per frame goes to standard output.
set -eu
export XDG_CACHE_HOME=/data/cache HOME=/data
{prepare}exec trt-qat infer "$@" --model "$MODEL" --runtime tensorrt --no-save --jsonl - \\
    --conf {section.conf} --iou {section.iou} --set infer.max_det={section.max_det}
"""


def _unit(file: DetectorFile) -> str:
    name = unit_name(file)
    return f"""# Keys: systemd.unit(5), systemd.service(5); options of docker run: Docker's reference.
[Unit]
Description=Detection on a camera with {file.name} (trt_qat)
Requires=docker.service
After=docker.service
# a camera that is away for an hour is no reason to give up
StartLimitIntervalSec=0

[Service]
# another camera or stream: `systemctl edit {name}`, with these two lines changed
Environment=DEVICE=/dev/video0
Environment=SOURCE=/dev/video0
ExecStartPre=-/usr/bin/docker rm --force {name}
# a stream from the network needs --network host instead of none, and no --device
ExecStart=/usr/bin/docker run --rm --init --name {name} \\
    --runtime nvidia \\
    --device ${{DEVICE}} \\
    --group-add video \\
    --network none \\
    --read-only --tmpfs /tmp \\
    --cap-drop ALL --security-opt no-new-privileges \\
    --volume {name}:/data \\
    {name} ${{SOURCE}}
# SIGTERM: infer finishes its files
ExecStop=/usr/bin/docker stop --time 20 {name}
Restart=always
RestartSec=5
TimeoutStopSec=30

[Install]
WantedBy=multi-user.target
"""


def _readme(file: DetectorFile) -> str:
    name = unit_name(file)
    what = (
        "The first start builds the engine (minutes) and keeps it in the volume."
        if file.kind == "onnx"
        else "The plan runs on the kind of Jetson and with the TensorRT that built it."
    )
    return f"""'{file.name}' on an NVIDIA Jetson with JetPack 6: detection on a camera, kept running by systemd.

On the Jetson, in this folder; it needs Docker and the NVIDIA Container Toolkit:

1. A wheel of trt_qat in wheels/ (from its source folder; not needed where pip finds trt_qat by itself):

       pip wheel --no-deps --wheel-dir wheels PATH_OF_TRT_QAT

2. The image:

       sudo docker build --tag {name} .

3. The service:

       sudo cp {name}.service /etc/systemd/system/
       sudo systemctl enable --now {name}
       journalctl --follow --unit {name}        # one JSON object per frame

{what}
It runs without root and without capabilities, on a file system that it cannot write but for /data and /tmp, with no
network, and with the camera as its only device besides the GPU. It starts again 5 s after any end.

For JetPack 7 give another image with CUDA, TensorRT and its Python module: docker build --build-arg BASE=...

Parsed by trt_qat's tests, but neither built nor run: no Jetson was at hand.
"""


DEPLOYMENT = Deployment(
    name="jetson",
    summary="NVIDIA Jetson: a container for `trt-qat infer` and a systemd unit.",
    takes=("onnx", "plan"),
    write=write,
    next_step="README.txt in it has the lines that build the image and start the service.",
    not_run="Neither built nor run, no Jetson is here: the unit, the Dockerfile and the command are parsed in tests.",
)
