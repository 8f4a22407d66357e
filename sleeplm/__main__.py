"""``python -m sleeplm`` is the ``sleeplm`` command."""

import sys

from sleeplm.cli import main

sys.exit(main())
