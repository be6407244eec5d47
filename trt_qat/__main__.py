"""``python -m trt_qat`` and the console script ``trt-qat``."""

from trt_qat import entry


def main() -> None:
    """Entry point of the console script."""
    entry.run(_command)


def _command() -> None:
    from trt_qat.cli import call, cli  # within: a signal while it loads is answered

    call(cli, "trt-qat")


if __name__ == "__main__":
    main()
