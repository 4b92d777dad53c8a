"""Which weights a network multiplies its activations with, as they are or as something that is computed from them."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterator, Mapping
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import flop_registry

_aten = torch.ops.aten
COPIES = {_aten.clone, _aten._to_copy, _aten.cat, _aten.stack}
"""Operations that only move values: what is multiplied with their result is multiplied with the weight itself."""
PRODUCTS = {_aten.mm, _aten.addmm, _aten.bmm, _aten.baddbmm, _aten.convolution, _aten._convolution}
RECURRENT = {_aten.mkldnn_rnn_layer, _aten._cudnn_rnn, _aten.miopen_rnn}


class Products(TorchDispatchMode):  # type: ignore[misc]
    """Counts, inside it, the multiply-adds of matrix products and convolutions by the weight that they are taken with.

    A weight is known by its place in memory, so that it counts however it is used: by its layer, through
    `torch.nn.functional`, transposed, sliced, or copied to another dtype. `multiply_adds`: by name; the batch counts.
    `computed`: name -> the first other operation that used a weight, for example the normalisation of a
    weight-standardised convolution.
    """

    def __init__(self, weights: Mapping[str, Tensor]) -> None:
        """`weights`: by name, each in memory of its own and of two or more dimensions; not on the meta device."""
        super().__init__()
        self.weights = {name: weight for name, weight in weights.items() if weight.dim() > 1}
        self.multiply_adds: Counter[str] = Counter()
        self.computed: dict[str, str] = {}
        self._copies: dict[int, tuple[Tensor, Mapping[str, int]]] = {}

    def __enter__(self) -> Products:
        """Begin to count."""
        self._fast = torch.backends.mha.get_fastpath_enabled()
        torch.backends.mha.set_fastpath_enabled(False)  # it hides all products of an attention layer in one operation
        super().__enter__()
        return self

    def __exit__(self, *error: Any) -> None:
        """Stop counting."""
        super().__exit__(*error)
        torch.backends.mha.set_fastpath_enabled(self._fast)

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        """Run an operation and see which weights it takes."""
        given = [tensor for tensor in _tensors((*args, *(kwargs or {}).values())) if tensor.dim() > 1]
        found = [origins for tensor in given if (origins := self._origins(tensor))]
        out, packet = func(*args, **(kwargs or {})), func.overloadpacket
        if not found or packet.__name__.startswith("new_") or packet.__name__.endswith("_like"):  # of its shape alone
            return out
        if packet in PRODUCTS:
            # Of two, the second operand: what a layer's weight is; the first may be a learnt query or token.
            self._count(found[-1], int(flop_registry[packet](*args, **(kwargs or {}), out_val=out)) // 2)
        elif packet in RECURRENT:
            steps = math.prod(args[0].shape[:-1])
            for origins in found:
                self._count(origins, steps * sum(origins.values()))
        elif packet in COPIES:
            self._copies[out.data_ptr()] = out, {n: size for origins in found for n, size in origins.items()}
        elif packet.__name__.endswith("_") and args[0].data_ptr() in self._copies:
            self._compute(self._copies.pop(args[0].data_ptr())[1], packet.__name__)  # a copy that is changed is none
        elif not any(self._origins(tensor) for tensor in _tensors((out,))):  # a view is the weight still
            for origins in found:
                self._compute(origins, packet.__name__)
        return out

    def _compute(self, origins: Mapping[str, int], operation: str) -> None:
        for name in origins:
            self.computed.setdefault(name, operation)

    def _count(self, origins: Mapping[str, int], multiply_adds: int) -> None:
        """Add to the weights that an operand is made of, each by its share of it."""
        whole = sum(origins.values())
        for name, size in origins.items():
            self.multiply_adds[name] += multiply_adds * size // whole

    def _origins(self, tensor: Tensor) -> Mapping[str, int]:
        """Return the weights that a tensor is, is a part of or was copied from, and how much of it each is."""
        if tensor.layout is not torch.strided:  # it has no one place in memory
            return {}
        place = tensor.data_ptr()
        if place in self._copies:
            return self._copies[place][1]
        for name, weight in self.weights.items():
            if 0 <= place - weight.data_ptr() < weight.numel() * weight.element_size():
                return {name: min(tensor.numel(), weight.numel())}
        return {}


def _tensors(values: Any) -> Iterator[Tensor]:
    for value in values:
        if isinstance(value, Tensor):
            yield value
        elif isinstance(value, tuple | list):
            yield from _tensors(value)
