"""What tests of int8 kernels convert for: all 8 bits where this CPU sums them right."""

from __future__ import annotations

import pytest

from qconvert.measurement.environment import here
from qconvert.qconfig import Isa

VNNI = here().vnni
ISA: Isa = "vnni" if VNNI else "portable"
needs_vnni = pytest.mark.skipif(not VNNI, reason="8-bit sums overflow on a CPU without VNNI")
