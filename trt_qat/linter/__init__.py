"""The Q/DQ lint: ``report.lint`` reads a file, ``rules.RULES`` is the table, ``picture.draw`` is the drawing."""
