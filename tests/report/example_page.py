"""The example record's page, made once for all tests that look at it."""

from __future__ import annotations

from functools import cache

from example_record import example_record

from trt_qat.report.page import html_page


@cache
def example_page() -> str:
    return html_page(example_record())
