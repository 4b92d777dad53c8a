"""Which weights a network multiplies its activations with, as they are or as something that is computed from them."""

from __future__ import annotations

import contextlib
import math
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import flop_registry

_aten = torch.ops.aten
COPIES = {_aten.clone, _aten._to_copy, _aten.cat, _aten.stack}
"""Operations that only move values: what is multiplied with their result is multiplied with the weight itself."""
PRODUCTS = {_aten.mm, _aten.addmm, _aten.bmm, _aten.baddbmm, _aten.convolution, _aten._convolution}
CONVOLUTIONS = {_aten.convolution, _aten._convolution}
RECURRENT = {_aten.mkldnn_rnn_layer, _aten._cudnn_rnn, _aten.miopen_rnn}


class Products(TorchDispatchMode):  # type: ignore[misc]
    """Counts, inside it, the multiply-adds of matrix products and convolutions by the weight that they are taken with.

    A weight is known by its place in memory, so that it counts however it is used: by its layer, through
    `torch.nn.functional`, transposed, sliced, or copied to another dtype. `multiply_adds`: by name; the batch counts.
    `computed`: name -> the first other operation that used a weight, for example the normalisation of a
    weight-standardised convolution. `derived`: by name, multiply-adds with what was computed from the weight; `spread`:
    the names of those where values of more than one kind beside 0 stood in it (see `spreading`).
    """

    def __init__(self, weights: Mapping[str, Tensor]) -> None:
        """`weights`: by name, each in memory of its own and of two or more dimensions; not on the meta device."""
        super().__init__()
        self.weights = {name: weight for name, weight in weights.items() if weight.dim() > 1}
        self.multiply_adds: Counter[str] = Counter()
        self.computed: dict[str, str] = {}
        self.derived: Counter[str] = Counter()
        self.spread: set[str] = set()
        self._copies: dict[int, tuple[Tensor, Mapping[str, int]]] = {}
        self._results: dict[int, tuple[Tensor, set[str]]] = {}

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
        given = list(_tensors((*args, *(kwargs or {}).values())))
        found = [origins for tensor in given if tensor.dim() > 1 and (origins := self._origins(tensor))]
        behind = {name for tensor in given for name in (*self._origins(tensor), *self._names(tensor))}
        out, packet = func(*args, **(kwargs or {})), func.overloadpacket
        if not behind or packet.__name__.startswith("new_") or packet.__name__.endswith("_like"):  # of its shape alone
            return out
        if packet in PRODUCTS:
            multiply_adds = int(flop_registry[packet](*args, **(kwargs or {}), out_val=out)) // 2
            if found:  # Of two, the second operand: what a layer's weight is; the first may be a learnt query or token.
                self._count(found[-1], multiply_adds)
            else:
                self._derive(given[:2] if packet in CONVOLUTIONS else given[-2:], multiply_adds)
            return out
        if packet in RECURRENT:
            steps = math.prod(args[0].shape[:-1])
            for origins in found:
                self._count(origins, steps * sum(origins.values()))
            return out
        results = list(_tensors((out,)))
        if packet in COPIES and found:
            self._copies[out.data_ptr()] = out, {n: size for origins in found for n, size in origins.items()}
            return out
        changed = list(_tensors(args[:1])) if packet.__name__.endswith("_") else []
        copies = [place for tensor in changed if (place := self._copy(tensor)) is not None]
        for place in copies:
            self._compute(self._copies.pop(place)[1], packet.__name__)  # a copy that is changed is none
        if copies or not any(self._origins(tensor) for tensor in results):  # a view is the weight still
            for origins in found:
                self._compute(origins, packet.__name__)
            for tensor in results or changed:
                self._results[_storage(tensor)] = tensor, behind | self._names(tensor)
        return out

    def _compute(self, origins: Mapping[str, int], operation: str) -> None:
        for name in origins:
            self.computed.setdefault(name, operation)

    def _derive(self, operands: Iterable[Tensor], multiply_adds: int) -> None:
        """Add to the weights that an operand was computed from, and look at its values."""
        for operand in operands:
            for name in (names := self._names(operand)):
                self.derived[name] += multiply_adds
            values = operand[(operand != 0) & ~operand.isnan()] if names else operand[:0]
            if values.numel() and bool(values.min() != values.max()):
                self.spread |= names

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
        if (copied := self._copy(tensor)) is not None:
            return self._copies[copied][1]
        for name, weight in self.weights.items():
            if 0 <= place - weight.data_ptr() < weight.numel() * weight.element_size():
                return {name: min(tensor.numel(), weight.numel())}
        return {}

    def _copy(self, tensor: Tensor) -> int | None:
        """Return the place of the copy that a tensor is or is a part of."""
        if tensor.layout is not torch.strided:
            return None
        place = tensor.data_ptr()
        if place in self._copies:
            return place
        within = (at for at, (copy, _) in self._copies.items() if 0 < place - at < copy.numel() * copy.element_size())
        return next(within, None)

    def _names(self, tensor: Tensor) -> set[str]:
        """Return the weights that a tensor was computed from."""
        return self._results.get(_storage(tensor), (None, set[str]()))[1]


KEPT = 0.75
"""The one value of a weight whose spreading is tried."""


def spreading(run: Callable[[], object], parameters: Mapping[str, Tensor], names: Iterable[str]) -> set[str]:
    """Return those of `names` whose zeros do not stay zeros in what is multiplied, or of which that cannot be seen.

    Tried with weights that are 0 but for one entry, thrice. A scale, a mask, dropout, quantisation or an index leave
    one value there; weight standardisation or a sum with something dense make more of it. `run` multiplies with the
    `parameters`, which are changed: give those of a copy, and fork the random stream.
    """
    names = set(names)
    refused = set(names)
    with torch.no_grad(), contextlib.suppress(Exception):
        for name, parameter in parameters.items():
            if name not in names and not bool(parameter.any()):
                parameter.fill_(1)  # what begins at 0, as a low-rank addition does, would be dense later
        spread, seen = set[str](), set[str]()
        for share in (0, 0.5, 1):
            for name in names:
                weight = parameters[name].zero_()
                weight[torch.unravel_index(torch.tensor(int(share * (weight.numel() - 1))), weight.shape)] = KEPT
            with Products(parameters) as products:
                run()
            spread |= products.spread
            seen |= {*products.derived}
        refused = {name for name in names if name in spread or name not in seen}
    return refused


def _storage(tensor: Tensor) -> int:
    return tensor.untyped_storage().data_ptr() if tensor.layout is torch.strided else id(tensor)


def _tensors(values: Any) -> Iterator[Tensor]:
    for value in values:
        if isinstance(value, Tensor):
            yield value
        elif isinstance(value, tuple | list):
            yield from _tensors(value)
