"""A pretended accelerator, `pretended:0`: a tensor's values are on the CPU, the rules are CUDA's.

To be imported before fedlora and anything else that decorates with torch.inference_mode, in a
process of its own, since torch can forget no backend. Then every configuration may name it as
simulation.device, for a run whose clients are served in its own process (simulation.workers = 0).

What CUDA refuses is refused: tensors of two devices in one operator (but 0-dimensional ones, and
indices), a generator of the other device, numpy of a tensor that is not on the CPU. It has a random
generator of its own. How long anything takes it cannot tell; what a loop waits for it tells
`tests.pretended.watched`.

A tensor here is a wrapper without values, which torch knows as one of the device, around an `inner`
tensor. Operators on wrappers come to `dispatched`; those that only name the device, such as
torch.zeros, come there by the fallback of the device's dispatch key.
"""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.utils import backend_registration as backend
from torch.utils._python_dispatch import return_and_correct_aliasing
from torch.utils._pytree import tree_leaves, tree_map

NAME = "pretended"  # as in `plan`, which needs no torch
DEVICE = f"{NAME}:0"

aten = torch.ops.aten
COPIES = {aten._to_copy.default, aten.copy_.default}
INDEXING = {aten.index.Tensor, aten.index_put_.default, aten.index_put.default}
INDEXING |= {aten._index_put_impl_.default, aten._unsafe_index.Tensor}

Seen = Callable[[Any, tuple[Any, ...], dict[str, Any], Any], None]
watchers: list[Seen] = []  # each is given (operator, args, kwargs, result) of what the device does


class Pretended(Tensor):
    """A tensor of the device."""

    inner: Tensor
    __torch_function__ = torch._C._disabled_torch_function_impl

    @staticmethod
    def __new__(cls, inner: Tensor) -> "Pretended":
        made = Tensor._make_wrapper_subclass(
            cls,
            inner.shape,
            inner.stride(),
            inner.storage_offset(),
            dtype=inner.dtype,
            device=torch.device(DEVICE),
        )
        made.inner = inner
        return made

    @classmethod
    def __torch_dispatch__(
        cls, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        return dispatched(func, *args, **(kwargs or {}))

    def __repr__(self, **_: Any) -> str:  # type: ignore[override]
        return f"Pretended({self.inner!r})"

    # What torch's own code in C++ would do with values that are not there.
    def tolist(self) -> Any:
        return self.cpu().tolist()

    def numpy(self, *, force: bool = False) -> Any:
        if not force:
            raise TypeError(f"can't convert {DEVICE} device type tensor to numpy")
        return self.detach().cpu().numpy()

    def data_ptr(self) -> int:
        return self.detach().inner.data_ptr()

    def untyped_storage(self) -> Any:
        return self.detach().inner.untyped_storage()

    @property
    def data(self) -> Tensor:
        return self.detach()

    @data.setter
    def data(self, new: Tensor) -> None:
        _become(self, new)


class Generator(torch.Generator):
    """One of the CPU's in the place of one of the device's."""

    def __new__(cls, device: Any = "cpu") -> "Generator":
        place = torch.device(device)
        made = super().__new__(cls, "cpu" if place.type == NAME else place)
        made.place = place
        if place.type == NAME:
            _generators[made._cdata] = made
        return made

    @property
    def device(self) -> torch.device:
        return self.place


def _become(tensor: Any, new: Tensor) -> None:
    """`tensor.data = new`, which may bring a tensor to another device, as it may on CUDA."""
    if isinstance(tensor, Pretended) != isinstance(new, Pretended):
        torch.utils.swap_tensors(tensor, torch.nn.Parameter(new, tensor.requires_grad))
        return
    Tensor.data.__set__(tensor, new)  # type: ignore[attr-defined]
    if isinstance(new, Pretended):
        tensor.inner = new.inner


_generators: dict[int, Generator] = {}  # the device's, by what stays of them in an operator's call


class Module(backend._DummyBackendModule):
    """What `torch.pretended` is: as torch.cuda, as far as anything asks for it."""

    def __init__(self) -> None:
        self.generator = torch.Generator()  # the device's own, whose state is the CPU's kind

    def manual_seed(self, seed: int) -> None:
        self.generator.manual_seed(seed)

    def manual_seed_all(self, seed: int) -> None:
        self.manual_seed(seed)

    def get_rng_state(self, device: Any = DEVICE) -> Tensor:
        return self.generator.get_state()

    def set_rng_state(self, state: Tensor, device: Any = DEVICE) -> None:
        self.generator.set_state(state)

    def get_amp_supported_dtype(self) -> list[torch.dtype]:
        return [torch.bfloat16, torch.float16]


def dispatched(func: Any, *args: Any, **kwargs: Any) -> Any:
    """An operator's work, on the inner tensors.

    Raises RuntimeError for what CUDA refuses."""
    tensors = [t for t in tree_leaves((args, kwargs)) if isinstance(t, Tensor)]
    here = any(isinstance(t, Pretended) for t in tensors)
    named = kwargs.get("device")
    stays = torch.device(named).type == NAME if named is not None else here
    if func is aten.copy_.default:
        stays = isinstance(args[0], Pretended)
    elif here and func not in COPIES:
        _same_device(func, args, tensors)
    _same_generator(func, kwargs, stays)
    inner, more = tree_map(lambda x: x.inner if isinstance(x, Pretended) else x, (args, kwargs))
    if named is not None:
        more["device"] = "cpu"
    found = _drawn(func, inner, more) if stays else func(*inner, **more)
    for seen in watchers:
        seen(func, args, kwargs, found)
    if not stays:
        return args[0] if func is aten.copy_.default else found
    if (out := kwargs.get("out")) is not None and out.shape != out.inner.shape:
        out.data = Pretended(out.inner)  # as torch.eye and others begin with one of no elements
        return out
    found = tree_map(lambda x: Pretended(x) if isinstance(x, Tensor) else x, found)
    return return_and_correct_aliasing(func, args, kwargs, found) if here else found


def _copied(source: Tensor, target: Tensor, non_blocking: bool = False) -> Tensor:
    dispatched(aten.copy_.default, target, source, non_blocking)
    return target


def _same_device(func: Any, args: tuple[Any, ...], tensors: list[Tensor]) -> None:
    if func in INDEXING and isinstance(args[0], Pretended):
        return  # by indices from anywhere
    others = [tuple(t.shape) for t in tensors if not isinstance(t, Pretended) and t.dim()]
    if others:
        raise RuntimeError(
            f"Expected all tensors to be on the same device, but found {DEVICE} and cpu, whose "
            f"shapes are {others}, in {func}"
        )


def _same_generator(func: Any, kwargs: dict[str, Any], stays: bool) -> None:
    generator = kwargs.get("generator")
    if generator is not None and (generator._cdata in _generators) != stays:
        wanted, found = (NAME, "cpu") if stays else ("cpu", NAME)
        raise RuntimeError(
            f"Expected a '{wanted}' device type for generator but found '{found}', in {func}"
        )


def _lower(func: Any) -> Callable[..., Tensor]:
    """An operator as torch.autocast has it, in the lower format."""

    def kernel(*args: Any, **kwargs: Any) -> Tensor:
        dtype = torch.get_autocast_dtype(NAME)
        keys = torch._C.DispatchKeySet(torch._C.DispatchKey.AutocastPrivateUse1)
        with torch._C._ExcludeDispatchKeyGuard(keys):
            wide = (isinstance(x, Tensor) and x.is_floating_point() for x in args)
            return func(
                *(x.to(dtype) if w else x for x, w in zip(args, wide, strict=True)), **kwargs
            )

    return kernel


def _drawn(func: Any, args: Any, kwargs: dict[str, Any]) -> Any:
    """What an operator gives; one that draws, and is given no generator, from the device's own."""
    if torch.Tag.nondeterministic_seeded not in func.tags or kwargs.get("generator") is not None:
        return func(*args, **kwargs)
    own, usual = module.generator, torch.default_generator
    before = usual.get_state()
    usual.set_state(own.get_state())
    try:
        return func(*args, **kwargs)
    finally:
        own.set_state(usual.get_state())
        usual.set_state(before)


module = Module()
torch.inference_mode = lambda mode=True: torch.no_grad()  # type: ignore  # wrappers survive no other
torch.nn.Parameter.data = property(Tensor.data.__get__, _become)  # type: ignore
torch.Generator = Generator  # type: ignore[misc]
# A module that moves gets new parameters, as it does on no other device: these are new objects.
torch.__future__.set_swap_module_params_on_conversion(True)
backend._setup_privateuseone_for_python_backend(NAME, module)
_everything = torch.library.Library("_", "IMPL")
_everything.fallback(dispatched, "PrivateUse1")
_everything.fallback(torch.library.fallthrough_kernel, "AutocastPrivateUse1")
_kernels = torch.library.Library("aten", "IMPL")
_kernels.impl("_copy_from", _copied, "PrivateUse1")  # of a new tensor, from Python's numbers
for _name in ("linear", "matmul", "mm", "bmm", "addmm", "baddbmm"):
    _kernels.impl(_name, _lower(getattr(torch.ops.aten, _name).default), "AutocastPrivateUse1")
