"""One file per system that an exported detector is handed to: what it needs there, and nothing by hand."""
