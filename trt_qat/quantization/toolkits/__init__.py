"""One adapter per quantization package."""
