"""``python -m trt_qat.infer SOURCE``: the command ``trt-qat infer`` alone. Neither loads torch."""

from trt_qat import entry


def main() -> None:
    """Entry point of the module."""
    entry.run(_command)


def _command() -> None:
    from trt_qat.cli import call, infer

    call(infer, "python -m trt_qat.infer")


if __name__ == "__main__":
    main()
