"""Run an exported file: TensorRT, OpenVINO or ONNX Runtime behind one protocol; images and videos on top."""
