"""``python -m ddsm_zoo`` is the command ``ddsm-zoo``."""

from ddsm_zoo.cli import main

main()
