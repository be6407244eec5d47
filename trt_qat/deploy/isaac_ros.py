"""Isaac ROS: image encoder, TensorRT node and YOLOv8 decoder, with their parameters, as one launch file.

Sources: NVIDIA-ISAAC-ROS/isaac_ros_object_detection, commit dbbb250 (release 4.4): isaac_ros_yolov8/src/
yolov8_decoder_node.cpp (parameters; it reads 8400 anchors of raw output whatever the tensor's shape is, and the launch
files beside it do not set num_classes, which is 80 then) and launch/yolov8_tensor_rt.launch.py. NVIDIA-ISAAC-ROS/
isaac_ros_dnn_inference, commit 0625147 (release 4.5): isaac_ros_tensor_rt/src/tensor_rt_node.cpp (parameters; it finds
its input by the tensor's name, and builds engines that are not strongly typed) and isaac_ros_dnn_image_encoder/launch/
dnn_image_encoder.launch.py and src/dnn_image_encoder_node.cpp (parameters; the border is black).
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Final

from trt_qat.config import InferSection
from trt_qat.deploy.base import Deployment
from trt_qat.deploy.contents import copy_model, engine_script, labels, write_file
from trt_qat.deploy.detector_file import DetectorFile
from trt_qat.errors import ConfigError

_ANCHORS: Final = 8400  # fixed in the decoder's source: those of 640x640 pixels
_TENSOR_IN, _TENSOR_OUT = "input_tensor", "output_tensor"


def write(file: DetectorFile, section: InferSection, folder: Path) -> None:
    """The model, tensor_rt.yaml, decoder.yaml, NAME.launch.py, labels.txt, README.txt, and build_engine.sh for ONNX.

    Raises:
        ConfigError: the decoder could not read this model.
    """
    file.require_raw("Isaac ROS's decoder")
    file.require_signed("Isaac ROS")
    if file.output[1] != _ANCHORS:
        raise ConfigError(
            f"Isaac ROS's YOLOv8 decoder reads {_ANCHORS} anchors, those of 640x640 pixels; '{file.path}' has "
            f"{file.output[1]}. Export it at --set model.imgsz=640."
        )
    if file.batches[0] != 1:
        raise ConfigError(
            f"Isaac ROS sends one image at a time, '{file.path}' takes {file.batches[0]}. Export it anew."
        )
    if file.kind == "onnx":
        copy_model(file, folder / f"{file.name}.onnx")
        write_file(folder / "build_engine.sh", engine_script(file))
    else:
        copy_model(file, folder / f"{file.name}.engine")
    write_file(folder / "tensor_rt.yaml", _tensor_rt(file))
    write_file(folder / "decoder.yaml", _decoder(file, section))
    write_file(folder / f"{file.name}.launch.py", _launch(file))
    write_file(folder / "labels.txt", labels(file))
    write_file(folder / "README.txt", _readme(file))


def _tensor_rt(file: DetectorFile) -> str:
    return f"""# nvidia::isaac_ros::dnn_inference::TensorRTNode, parameters as declared in
# NVIDIA-ISAAC-ROS/isaac_ros_dnn_inference (commit 0625147), isaac_ros_tensor_rt/src/tensor_rt_node.cpp.
# model_file_path and engine_file_path are set by the launch file, which knows where this folder is.
/**:
  ros__parameters:
    # the engine is there: the node's own builder does not keep the precision that the file has ({file.precision})
    force_engine_update: false
    input_tensor_names: ["{_TENSOR_IN}"]
    input_binding_names: [{json.dumps(file.input_name)}]
    output_tensor_names: ["{_TENSOR_OUT}"]
    output_binding_names: [{json.dumps(file.output_name)}]
    verbose: false
"""


def _decoder(file: DetectorFile, section: InferSection) -> str:
    return f"""# nvidia::isaac_ros::yolov8::YoloV8DecoderNode, parameters as declared in
# NVIDIA-ISAAC-ROS/isaac_ros_object_detection (commit dbbb250), isaac_ros_yolov8/src/yolov8_decoder_node.cpp.
/**:
  ros__parameters:
    tensor_name: {_TENSOR_OUT}
    confidence_threshold: {float(section.conf)}
    # boxes of all classes suppress each other there, not only those of one class as in trt_qat
    nms_threshold: {1.0 if file.layout == "nms_free" else float(section.iou)}
    num_classes: {len(file.class_names)}
"""


def _launch(file: DetectorFile) -> str:
    height, width = file.size
    return f'''"""Camera images to detections of '{file.name}': encoder, TensorRT, decoder.

    ros2 launch {file.name}.launch.py input_image_width:=1920 input_image_height:=1080

Nodes and arguments: NVIDIA-ISAAC-ROS/isaac_ros_object_detection (commit dbbb250), isaac_ros_yolov8/launch, and
isaac_ros_dnn_inference (commit 0625147), isaac_ros_dnn_image_encoder/launch/dnn_image_encoder.launch.py.
"""

import os

import launch
from ament_index_python.packages import get_package_share_directory
from launch.actions import DeclareLaunchArgument, IncludeLaunchDescription
from launch.launch_description_sources import PythonLaunchDescriptionSource
from launch.substitutions import LaunchConfiguration
from launch_ros.actions import ComposableNodeContainer
from launch_ros.descriptions import ComposableNode

HERE = os.path.dirname(os.path.realpath(__file__))
CONTAINER = "tensor_rt_container"


def generate_launch_description():
    arguments = [
        DeclareLaunchArgument("input_image_width", description="Width of the camera's images, pixels"),
        DeclareLaunchArgument("input_image_height", description="Height of the camera's images, pixels"),
        DeclareLaunchArgument("image_input_topic", default_value="/image", description="Images, rgb8"),
        DeclareLaunchArgument("camera_info_input_topic", default_value="/camera_info", description="Camera info"),
    ]
    encoder = IncludeLaunchDescription(
        PythonLaunchDescriptionSource(
            [
                os.path.join(
                    get_package_share_directory("isaac_ros_dnn_image_encoder"), "launch", "dnn_image_encoder.launch.py"
                )
            ]
        ),
        launch_arguments={{
            "input_image_width": LaunchConfiguration("input_image_width"),
            "input_image_height": LaunchConfiguration("input_image_height"),
            "network_image_width": "{width}",
            "network_image_height": "{height}",
            "enable_padding": "True",
            "input_encoding": "rgb8",
            # the encoder divides by 255 itself; nothing else is done to a pixel
            "image_mean": "[0.0, 0.0, 0.0]",
            "image_stddev": "[1.0, 1.0, 1.0]",
            # TensorRTNode finds its input by this name
            "tensor_name": "{_TENSOR_IN}",
            "attach_to_shared_component_container": "True",
            "component_container_name": CONTAINER,
            "dnn_image_encoder_namespace": "yolov8_encoder",
            "image_input_topic": LaunchConfiguration("image_input_topic"),
            "camera_info_input_topic": LaunchConfiguration("camera_info_input_topic"),
            "tensor_output_topic": "/tensor_pub",
        }}.items(),
    )
    tensor_rt = ComposableNode(
        name="tensor_rt",
        package="isaac_ros_tensor_rt",
        plugin="nvidia::isaac_ros::dnn_inference::TensorRTNode",
        parameters=[
            os.path.join(HERE, "tensor_rt.yaml"),
            {{
                "model_file_path": os.path.join(HERE, "{file.name}.onnx"),
                "engine_file_path": os.path.join(HERE, "{file.name}.engine"),
            }},
        ],
    )
    decoder = ComposableNode(
        name="yolov8_decoder_node",
        package="isaac_ros_yolov8",
        plugin="nvidia::isaac_ros::yolov8::YoloV8DecoderNode",
        parameters=[os.path.join(HERE, "decoder.yaml")],
    )
    container = ComposableNodeContainer(
        name=CONTAINER,
        namespace="",
        package="rclcpp_components",
        executable="component_container_mt",
        composable_node_descriptions=[tensor_rt, decoder],
        output="screen",
        arguments=["--ros-args", "--log-level", "INFO"],
    )
    return launch.LaunchDescription([*arguments, container, encoder])
'''


def _readme(file: DetectorFile) -> str:
    build = (
        f"""1. The engine, {file.name}.engine, on the GPU that will run it:

       sh build_engine.sh
"""
        if file.kind == "onnx"
        else f"1. {file.name}.engine is the plan that was given; it needs the GPU and the TensorRT that built it.\n"
    )
    return f"""'{file.name}' for Isaac ROS: isaac_ros_dnn_image_encoder, isaac_ros_tensor_rt and isaac_ros_yolov8.

In this folder:

{build}
2. The nodes. Images come on /image and /camera_info, detections (vision_msgs/Detection2DArray) on /detections_output:

       ros2 launch {file.name}.launch.py input_image_width:=1920 input_image_height:=1080

Boxes are in pixels of the network's input, {file.size[1]}x{file.size[0]}, as that decoder gives them.
Class ids are numbers; labels.txt has a name per line, from 0. The encoder's border is black, trt_qat's is gray (114);
the decoder suppresses boxes of all classes together, trt_qat those of each class.

Parsed by trt_qat's tests, but not run in ROS: no such machine was at hand.
"""


DEPLOYMENT = Deployment(
    name="isaac-ros",
    summary="NVIDIA Isaac ROS: encoder, TensorRT node, YOLOv8 decoder.",
    takes=("onnx", "plan"),
    write=write,
    next_step="README.txt in it has the lines that build the engine and launch the nodes.",
    not_run="Not run in ROS, which is not here: the launch file and the parameters are parsed in tests.",
)
