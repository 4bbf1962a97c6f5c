"""What the tests change in Triton's interpreter changes none of its types."""

from __future__ import annotations

import pytest
import quick_interpreter
import triton.language as tl
from triton.runtime import interpreter

ELEMENTS = (tl.int1, tl.int64, tl.float16, tl.bfloat16, tl.pointer_type(tl.float32))


@pytest.mark.parametrize("shape", [[1], [16], [4, 8], [16, 1], [1, 16]])
@pytest.mark.parametrize("element", ELEMENTS, ids=str)
def test_types_and_tensors_are_as_triton_makes_them(element: tl.dtype, shape: list[int]) -> None:
    quick_interpreter.install()
    for _ in range(2):  # made, then remembered
        found = tl.core.block_type(element, shape)
        want = tl.core.block_type.__new__(tl.core.block_type)
        quick_interpreter._block_type_init(want, element, shape)
        assert vars(found).keys() == vars(want).keys()
        assert found == want and found.name == want.name and found.numel == want.numel
        assert interpreter._get_np_dtype(found) == quick_interpreter._get_np_dtype(want)
        x, y = tl.core.tensor(None, found), tl.core.tensor.__new__(tl.core.tensor)
        quick_interpreter._tensor_init(y, None, want)
        assert vars(x).keys() == vars(y).keys()
        assert [n.value for n in x.shape] == [n.value for n in y.shape] == shape
        assert x.numel.value == y.numel.value and x.type == y.type and x.dtype == y.dtype


def test_wrong_shapes_are_refused_again_and_again() -> None:
    quick_interpreter.install()
    for _ in range(2):
        with pytest.raises(ValueError, match="power of 2"):
            tl.core.block_type(tl.int32, [3])
        with pytest.raises(TypeError, match="constexpr"):
            tl.core.block_type(tl.int32, [2.0])
