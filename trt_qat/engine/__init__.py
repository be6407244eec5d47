"""TensorRT engines: build a plan from an ONNX file, look into it."""
