"""``python -m trt_qat``: the same as the console script ``trt-qat``."""

from trt_qat.cli import main

if __name__ == "__main__":
    main()
