"""Checkpoint to ONNX, and the checks on it."""
