"""Load a YOLOv8 detector, trace it, name its critical layers."""
