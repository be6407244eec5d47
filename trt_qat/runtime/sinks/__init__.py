"""Where results go: one file per form."""
