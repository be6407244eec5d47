"""Images, boxes and letterboxing in NumPy and OpenCV."""
