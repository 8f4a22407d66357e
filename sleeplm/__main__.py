"""``python -m sleeplm`` is the ``sleeplm`` command."""

import sys

from sleeplm.runtime.cli import main

sys.exit(main())
