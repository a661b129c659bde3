"""One pretrained model with one adapter, and its tensors by name.

Shapes, for an adapted layer of m outputs and n inputs at rank r:

    A (r, n)  B (m, r)  R (r, r)              lora: s B A; lora-sb: s B R A
    M (m,)                                    dora, on lora: M (W0 + s B A) / |W0 + s B A|
    d (r,)  b (m,)  vera.U (m_max, r)  vera.V (r, n_max)   vera: diag(b) U diag(d) V
    P (m, rho)  Q (rho, n)  D (m, n)          the frozen residual, P Q + D
    head.<parameter>                          the task's head, whole

Everything that crosses this boundary is fp32 on the CPU; inside, the adapter, the head and the
residual are fp32 on the model's device, whatever format the frozen base is in, and LoRA's products
are in that, see `fedlora.adapters.narrow`.
"""

import warnings
from collections.abc import Collection
from typing import Any, cast

import torch
from peft import PeftModel, get_peft_model
from peft.utils.other import ModulesToSaveWrapper
from torch import Tensor, nn
from transformers import PreTrainedModel
from transformers.pytorch_utils import Conv1D

from fedlora import config as settings
from fedlora.adapters import recipe, targets
from fedlora.adapters.dense import dense
from fedlora.adapters.narrow import narrow
from fedlora.adapters.residual import Residual, attach
from fedlora.errors import UserError
from fedlora.shapes import fitting
from fedlora.streams import forked
from fedlora.tensors import RESIDUAL, Tensors, part_of, select

NAME = "default"  # what PEFT calls its only adapter


class Adapter:
    """A pretrained model with one adapter, and the index of its tensors by name.

    Attributes:
        model: the PEFT model; called like the model it was made of.
        scaling: the scale by rank.
        shapes: module path, as in the model without PEFT's prefixes -> (m, n).
        parts: the parts that can be trained: those of the kind, and `head` if there is one and
            the configuration does not freeze it.
    """

    def __init__(self, model: PreTrainedModel, config: settings.Adapter, seed: int) -> None:
        """Put an adapter into `model`, in place; every draw comes from `seed`.

        Raises:
            UserError: see `targets.targets` and `scaling`.
        """
        assert config.kind is not None, "the method's kind is resolved before this"
        self.kind = config.kind
        self.dora = config.dora
        self.scaling = recipe.scaling(config)
        self.shapes = targets.targets(model, config)
        told = recipe.peft_config(model, config, self.scaling, list(self.shapes), seed)
        with forked(seed, "adapter"), warnings.catch_warnings():
            # PEFT asks for a property under the name it had before.
            warnings.filterwarnings("ignore", ".*is_gradient_checkpointing.*", FutureWarning)
            # And warns that its own merging would change what is tied: `fedlora.merging` does not.
            warnings.filterwarnings("ignore", ".*tie_word_embeddings.*", UserWarning)
            self.model = cast(PeftModel, get_peft_model(model, told))
        narrow(self.model)
        self.model.to(model.device)  # VeRA's projections start on the CPU
        base = cast(PreTrainedModel, self.model.get_base_model())
        self._layers: dict[str, Any] = {k: base.get_submodule(k) for k in self.shapes}
        self._residuals: dict[str, Residual] = {k: attach(m) for k, m in self._layers.items()}
        self._heads = {
            k: _in_fp32(m) for k, m in base.named_modules() if isinstance(m, ModulesToSaveWrapper)
        }
        trained_head = config.head == "trained" and bool(self._heads)
        self.parts: set[str] = recipe.parts(config) | ({"head"} if trained_head else set())
        for module, layer in self._layers.items() if self.dora else ():
            # PEFT's are in the base's format; with B = 0 these are the whole W's.
            norms = self.weight(module).norm(dim=1)
            if not (norms.is_meta or norms.all()):
                raise UserError(
                    f"{module} has rows of zeros, as a padding token's, which have no direction "
                    "that DoRA could keep: leave the layer out of adapter.target_modules, or set "
                    "adapter.dora = false"
                )
            layer.lora_magnitude_vector[NAME].weight = nn.Parameter(norms)
        self._initial = _clones(self.live())
        self.trainable(self.parts)

    def initial(self) -> Tensors:
        """Clones of every tensor as PEFT initialised it, the head also where it is frozen."""
        return _clones(self._initial)

    def read(self, parts: Collection[str]) -> Tensors:
        """Detached clones of the tensors of these parts."""
        return _clones(select(self.live(), parts))

    def load(self, tensors: Tensors, scale: float | None = None) -> None:
        """Copy tensors into the parts of the same name, in place.

        Parts not named stay as they are, except the residual, which becomes exactly what `tensors`
        says: none where it says nothing. A and B of another rank resize their layer. `scale` is
        s for every layer, by default the scaling's at the layer's rank.

        Raises:
            UserError: a name that this adapter lacks, or a shape that does not fit; nothing has
                been changed then.
        """
        own = self.live()
        ranks = fitting(self.kind, self.shapes, tensors, own)
        if self.kind == "vera" and scale not in (None, 1.0):
            raise UserError(f"VeRA has no scale, and {scale} was given: leave it out.")
        with torch.no_grad():
            for name, tensor in tensors.items():
                if part_of(name) not in RESIDUAL:
                    _assign(own[name], tensor)
        for module, residual in self._residuals.items():
            for part in RESIDUAL:
                given = tensors.get(f"{module}.{part}")
                setattr(residual, part, given if given is None else self._taken(given))
        for module, rank in ranks.items():
            self._layers[module].r[NAME] = rank
            self._layers[module].scaling[NAME] = self.scaling.at(rank) if scale is None else scale

    def trainable(self, parts: Collection[str]) -> list[nn.Parameter]:
        """The parameters of these parts that this adapter can train: they require gradients from
        now on, and nothing else in the model does."""
        self.model.requires_grad_(False)
        chosen = select(self.live(), set(parts) & self.parts)
        return [cast(nn.Parameter, t.requires_grad_()) for t in chosen.values()]

    def scales(self) -> dict[str, float]:
        """The scale s of each module as it is loaded; VeRA has none."""
        return {} if self.kind == "vera" else {k: m.scaling[NAME] for k, m in self._layers.items()}

    def weight(self, module: str) -> Tensor:
        """W0 of a module, (m, n), fp32; of a quantised one what its numbers stand for."""
        layer = self._layers[module].get_base_layer()
        weight = dense(layer)
        return (weight.T if isinstance(layer, Conv1D) else weight).float()

    def base(self, module: str) -> nn.Module:
        """The frozen linear layer under a module's adapter."""
        return cast(nn.Module, self._layers[module].get_base_layer())

    def factors(self, module: str) -> tuple[Tensor, Tensor]:
        """The adapter without the residual: two factors, (m, r) and (r, n), scale inside, fp32.
        Of DoRA what is added to W0 before M has its say."""
        with torch.no_grad():
            if self.kind == "vera":
                m, n = self.shapes[module]
                d, b, U, V = self._vera(module)
                return b[:, None] * U[:m], d[:, None] * V[:, :n]
            layer = self._layers[module]
            A, B = layer.lora_A[NAME].weight, layer.lora_B[NAME].weight
            middle = B @ layer.lora_R[NAME].weight if self.kind == "lora-sb" else B
            return middle * layer.scaling[NAME], A.clone()

    def magnitude(self, module: str) -> Tensor:
        """DoRA's M of a module, (m,), the norms of W's rows (arXiv:2402.09353)."""
        return cast(Tensor, self._layers[module].lora_magnitude_vector[NAME].weight.detach())

    def residual(self, module: str) -> Residual:
        """The residual of a module: P, Q and D, each None where it has none."""
        return self._residuals[module]

    def delta(self, module: str) -> Tensor:
        """The effective W - W0 of a module, dense, (m, n), fp32; summed in float64."""
        left, right = (t.double() for t in self.factors(module))
        total = left @ right
        if self.dora:
            W0, M = self.weight(module).double(), self.magnitude(module).double()
            W = W0 + total
            total = (M / W.norm(dim=1))[:, None] * W - W0
        frozen = self._residuals[module]
        if frozen.P is not None and frozen.Q is not None:
            total += frozen.P.double() @ frozen.Q.double()
        if frozen.D is not None:
            total += frozen.D.double()
        return total.float()

    def head(self) -> dict[str, nn.Parameter]:
        """The head's parameters by their full name in the model."""
        return {f"{k}.{p}": t for k, m in self._heads.items() for p, t in m.named_parameters()}

    def _vera(self, module: str) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        layer = self._layers[module]
        shared = layer.vera_B[NAME], layer.vera_A[NAME]
        return layer.vera_lambda_d[NAME], layer.vera_lambda_b[NAME], *shared

    def live(self) -> Tensors:
        """The live tensors by name, without the residual. Looked up each time, since moving a
        model replaces its buffers."""
        found: Tensors = {}
        for name, layer in self._layers.items():
            if self.kind == "vera":
                d, b, found["vera.U"], found["vera.V"] = self._vera(name)
                found |= {f"{name}.d": d, f"{name}.b": b}
                continue
            found[f"{name}.A"] = layer.lora_A[NAME].weight
            found[f"{name}.B"] = layer.lora_B[NAME].weight
            if self.kind == "lora-sb":
                found[f"{name}.R"] = layer.lora_R[NAME].weight
            if self.dora:
                found[f"{name}.M"] = layer.lora_magnitude_vector[NAME].weight
        return found | {f"head.{k}": p for k, p in self.head().items()}

    def _taken(self, tensor: Tensor) -> Tensor:
        return tensor.detach().to(self.model.device, torch.float32, copy=True)


def _in_fp32(wrapper: ModulesToSaveWrapper) -> nn.Module:
    """The trained copy of a head, turned to fp32 so that small steps are not rounded away."""
    trained = wrapper.modules_to_save[NAME].float()

    def cast_inputs(_: nn.Module, inputs: tuple[Any, ...]) -> tuple[Any, ...]:
        return tuple(
            x.float() if isinstance(x, Tensor) and x.is_floating_point() else x for x in inputs
        )

    trained.register_forward_pre_hook(cast_inputs)
    return trained


def _assign(own: Tensor, given: Tensor) -> None:
    if own.shape == given.shape:
        own.copy_(given, non_blocking=True)
    else:  # another rank: the parameter stays the same object, so that PEFT and optimizers see it
        own.grad = None
        own.data = given.detach().to(own.device, own.dtype, copy=True)


def _clones(tensors: Tensors) -> Tensors:
    return {k: t.detach().to("cpu", torch.float32, copy=True) for k, t in tensors.items()}
