"""Strategies for tensors and the settings of a merge: few distinct values, so that magnitudes tie, and any at all."""

from __future__ import annotations

import hypothesis.extra.numpy as arrays
import numpy as np
import torch
from hypothesis import strategies as st

DTYPES = [torch.float64, torch.float32, torch.bfloat16, torch.float16]

SHAPES = arrays.array_shapes(min_dims=0, max_dims=3, min_side=0, max_side=7)
# few distinct values, so that magnitudes tie; and any values at all
NUMBERS = st.sampled_from([-2.0, -0.5, -0.0, 0.0, 0.5, 2.0]) | st.floats(-1e3, 1e3, width=16)
DENSITIES = st.sampled_from([0.0, 0.2, 0.5, 1.0]) | st.floats(0, 1)
WEIGHTS = st.sampled_from([0.0, 0.8, 1.0, -0.5]) | st.floats(-2, 2)


@st.composite
def tensors(draw, count):
    """``count`` tensors of one shape and dtype."""
    shape, dtype = draw(SHAPES), draw(st.sampled_from(DTYPES))
    return [
        torch.from_numpy(draw(arrays.arrays(np.float64, shape, elements=NUMBERS))).to(dtype).clone()
        for _ in range(count)
    ]
