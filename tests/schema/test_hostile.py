"""A hostile schema costs a bounded time and little memory, and ends in a value or one of our errors."""

from __future__ import annotations

import random
import time

import pytest
from schema.hostile import HOSTILE
from schema.machine import END, constraint

from bimedix_edge.errors import SchemaError

# seconds of the processor, several times the measured ones: the test catches work without a bound
MAX_COMPILE_S = 5.0
MAX_STEP_S = 2.0
STEPS = 120


@pytest.mark.parametrize("name", HOSTILE)
def test_a_hostile_schema_costs_a_bounded_time(name: str) -> None:
    rng = random.Random(1)
    start_s = time.process_time()
    try:
        held = constraint(HOSTILE[name])
        assert time.process_time() - start_s < MAX_COMPILE_S
        for _ in range(STEPS):
            start_s = time.process_time()
            token = int(rng.choice(held.allowed()))
            if token == END:
                break
            held.accept(token)
            assert time.process_time() - start_s < MAX_STEP_S
    except SchemaError:
        assert time.process_time() - start_s < MAX_COMPILE_S
