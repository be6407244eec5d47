"""``python -m trt_qat.infer SOURCE``: the command ``trt-qat infer`` alone. Neither loads torch."""

from trt_qat.cli import infer as command


def main() -> None:
    """Entry point of the module."""
    command(prog_name="python -m trt_qat.infer")


if __name__ == "__main__":
    main()
