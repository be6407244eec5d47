"""Where quantizers go, and how their ranges are found."""
