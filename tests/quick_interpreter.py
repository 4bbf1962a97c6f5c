"""Triton's interpreter with less to do for each operation; what it computes stays as it is.

A call of a device function patches the whole of `triton.language` again though its kernel has done
so already, and the types and shapes of tensors are built and checked anew for every operation.
"""

from __future__ import annotations

from functools import cache
from typing import Any

import triton.language as tl
from triton.runtime import interpreter


def install() -> None:
    """Idempotent; for the rest of the process."""
    if interpreter._patch_lang is not _patch_once:
        interpreter._patch_lang = _patch_once
        interpreter._get_np_dtype = _np_dtype
        tl.core.tensor.__init__ = _make_tensor
        tl.core.block_type.__init__ = _make_block_type


_patch_lang = interpreter._patch_lang
_get_np_dtype = interpreter._get_np_dtype
_tensor_init = tl.core.tensor.__init__
_block_type_init = tl.core.block_type.__init__


def _patch_once(fn: Any) -> Any:
    """An empty scope where all that `fn` sees of the language is patched."""
    seen = [x for x in fn.__globals__.values() if x is tl or x is tl.core]
    if any(tl.core.is_builtin(x.arange) for x in seen):
        return _patch_lang(fn)
    return interpreter._LangPatchScope()


_np_dtypes: dict[str, Any] = {}


def _np_dtype(dtype: Any) -> Any:
    """By name: a type's name tells all of it."""
    found = _np_dtypes.get(dtype.name)
    if found is None:
        found = _np_dtypes[dtype.name] = _get_np_dtype(dtype)
    return found


@cache
def _shape(shape: tuple[int, ...]) -> tuple[Any, Any]:
    """(shape, count of elements) as a tensor has them."""
    like = tl.core.tensor.__new__(tl.core.tensor)
    _tensor_init(like, None, tl.core.block_type(tl.int1, [*shape]) if shape else tl.int1)
    return like.shape, like.numel


def _make_tensor(self: Any, handle: Any, of: Any) -> None:
    self.handle = handle
    self.type = of
    self.dtype = of.scalar
    dims = tuple(of.shape) if of.is_block() else ()
    self.shape, self.numel = _shape(dims)


_block_types: dict[Any, dict[str, Any]] = {}


def _make_block_type(self: Any, element_ty: Any, shape: Any) -> None:
    try:
        key = element_ty.name, *shape
        known = _block_types.get(key)
    except (AttributeError, TypeError):
        key = known = None
    if known is None:
        _block_type_init(self, element_ty, shape)
        if key is not None and all(isinstance(n, int) for n in key[1:]):
            _block_types[key] = dict(vars(self))
    else:
        vars(self).update(known)
