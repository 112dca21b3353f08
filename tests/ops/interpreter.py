"""Triton's interpreter, made to round to bfloat16 as hardware does, to the nearest, and to take a fraction of the time.

By itself it cuts digits off, and replaces what a kernel finds in Triton's language at every call of a function anew.
"""

from collections.abc import Callable
from functools import cache
from typing import Any

import torch


def round_to_nearest() -> None:
    """From now on, in kernels that run interpreted. To be called once."""
    import triton.language as tl
    from triton.runtime.interpreter import InterpreterBuilder, TensorHandle

    cuts_off = InterpreterBuilder.cast_impl

    def cast_impl(self: Any, source: Any, type_: Any) -> Any:
        if (source.dtype.scalar, type_.scalar) != (tl.float32, tl.bfloat16):
            return cuts_off(self, source, type_)
        bits = torch.from_numpy(source.data.copy()).to(torch.bfloat16).view(torch.uint16)
        return TensorHandle(bits.numpy(), type_.scalar)

    InterpreterBuilder.cast_impl = cast_impl


def replace_once() -> None:
    """From now on, once a launch: a function that a kernel calls finds it done. To be called once."""
    import triton.language as tl
    from triton.runtime import interpreter

    patch = interpreter._patch_lang

    @cache
    def seen_by(function: Callable[..., Any]) -> list[Any]:
        return [lang for lang in (tl, tl.core) if any(value is lang for value in function.__globals__.values())]

    def patch_lang(function: Callable[..., Any]) -> Any:
        if any(tl.core.is_builtin(lang.load) for lang in seen_by(function)):  # as Triton has it
            return patch(function)
        return interpreter._LangPatchScope()  # has nothing to restore

    interpreter._patch_lang = patch_lang


def make_types_once() -> None:
    """From now on: a type of blocks, and what tensors and numpy ask of it, is made once for its element and shape, and
    blocks of one type are not broadcast. To be called once."""
    import triton.language as tl
    from triton.language.semantic import TritonSemantic
    from triton.runtime import interpreter

    make_block, make_tensor, find_numpy_type = tl.block_type.__init__, tl.tensor.__init__, interpreter._get_np_dtype
    broadcast = TritonSemantic.broadcast_impl_value
    blocks: dict[tuple[int, ...], dict[str, Any]] = {}

    def init_block(self: Any, element_ty: Any, shape: Any) -> None:
        key = (id(element_ty), *(int(size) for size in shape))
        if key not in blocks:
            make_block(self, element_ty, shape)
            blocks[key] = self.__dict__  # which holds the element: its id is no other one's
        self.__dict__ = blocks[key]

    def init_tensor(self: Any, handle: Any, type: Any) -> None:
        if "of_tensors" not in type.__dict__:
            make_tensor(self, handle, type)
            type.of_tensors = {"shape": self.shape, "numel": self.numel, "dtype": self.dtype}
        self.__dict__ = {"handle": handle, "type": type, **type.of_tensors}

    def numpy_type(type: Any) -> Any:
        if "of_numpy" not in type.__dict__:
            type.of_numpy = find_numpy_type(type)
        return type.of_numpy

    def broadcast_impl_value(self: Any, left: Any, right: Any) -> Any:
        same = left.type.is_block() and left.type.__dict__ is right.type.__dict__
        return (left, right) if same else broadcast(self, left, right)

    tl.block_type.__init__, tl.tensor.__init__, interpreter._get_np_dtype = init_block, init_tensor, numpy_type
    TritonSemantic.broadcast_impl_value = broadcast_impl_value
