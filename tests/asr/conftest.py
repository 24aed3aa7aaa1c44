"""Lets the tests of this folder `import naive_greedy`: with --import-mode=importlib nothing else does."""

from __future__ import annotations

import sys
from pathlib import Path

sys.path.append(str(Path(__file__).parent))
