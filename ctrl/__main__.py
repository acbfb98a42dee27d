"""``python -m ctrl`` is ``fastproxyctl``."""

from ctrl.cli import main

main()
