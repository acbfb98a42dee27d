"""``python -m fastproxy`` is the program ``fastproxy``."""

from fastproxy.cli import main

if __name__ == "__main__":
    main()
