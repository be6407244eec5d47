"""mAP, latency and size of exported files."""
