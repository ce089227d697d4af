"""Who holds what is trained: every process all of it, or a share of each of the backbone's layers. The door to torch's FSDP2.

Shared out are layers that are trained whole: their float32 weights, moments, averages and gradients, most of what training takes. A
layer's weights are gathered when it runs, forward and backward, and let go again. What serves every recursion step (refiner, head,
embeddings, norms) and layers of which little is trained (adapters) every process holds, as without.

All else of a training sees plain tensors: a process's optimizer, average and guard work on its share of each weight, the memory
that FSDP2 itself gathers from. Of a snapshot each process writes its rows, from which a run may go on in another number of
processes, or unshared; models hold whole weights, and are the same files as without.
"""

import contextlib
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from components.batch import Batch
from components.model import Model
from components.nn.masters import read_dtype, read_whole
from components.objective.objective import Objective
from components.training.two_optimizers import TwoOptimizers
from pipeline.errors import ConfigError
from pipeline.machine.distributed import any_of, gathered, rank, summed, world


def trainable(model: nn.Module, objective: Objective) -> dict[str, nn.Parameter]:
    """Collect the parameters that are not frozen, by name: the model's, then the objective's own below ``objective.``."""
    named = [*model.named_parameters(), *objective.named_parameters("objective")]
    return {name: parameter for name, parameter in named if parameter.requires_grad}


@dataclass(frozen=True)
class Place:
    """Where a module holds a parameter that is shared out."""

    module: nn.Module
    name: str


class Shares:
    """What of the trained parameters this process holds.

    Args:
        parameters: all that is trained, by name.
        places: where those that are shared out are held.

    Attributes:
        parameters: by name, what this process's optimizer moves: the parameter itself, or its share of it.
    """

    def __init__(self, parameters: Mapping[str, nn.Parameter], places: Mapping[str, Sequence[Place]] | None = None) -> None:
        self._whole, self._places = dict(parameters), dict(places or {})
        self.parameters = {name: self._share(name) for name in parameters}

    @property
    def are_parts(self) -> bool:
        """Tell whether anything is shared out."""
        return bool(self._places)

    def check(self, optimizer: torch.optim.Optimizer, trials: int) -> None:
        """Refuse what needs more of a weight than this process holds; as ``check_shared``."""
        if self.are_parts:
            check_shared(optimizer, trials)

    def clear(self) -> None:
        """Drop the gradient of every parameter."""
        for parameter in (*self._whole.values(), *self.parameters.values()):
            parameter.grad = None

    def taken(self) -> list[Tensor]:
        """Take the gradient of a microbatch, which is removed; zeros where nothing reached. Of what is shared out it is this
        process's share of the sum over all processes.
        """
        return [self._taken(name) for name in self.parameters]

    def summed(self, gradients: Sequence[Tensor]) -> list[Tensor]:
        """Sum gradients, and whatever stands behind them, over all processes, where that has not been done."""
        done = {place for place, name in enumerate(self.parameters) if name in self._places}
        sums = iter(summed([gradient for place, gradient in enumerate(gradients) if place not in done]))
        return [gradient if place in done else next(sums) for place, gradient in enumerate(gradients)]

    def norms(self, norms: Tensor) -> Tensor:
        """Make the norm of each parameter, in their order, of those of this process's shares."""
        if not self._places:
            return norms
        places = torch.tensor([place for place, name in enumerate(self.parameters) if name in self._places], device=norms.device)
        [squares] = summed([norms[places].square()])
        return norms.index_copy(0, places, squares.sqrt().to(norms.dtype))

    def in_step(self, batches: Iterator[tuple[int, Batch]]) -> Iterator[tuple[int | None, Batch]]:
        """Let every process take as many batches as any, since all run a layer that is shared out together: those that have no
        more take one again, without its number.
        """
        if not self._places:
            yield from batches
            return
        numbered = next(batches, None)
        firsts = gathered(numbered) if any_of(numbered is None) else [numbered]
        again = next(first for first in firsts if first is not None)[1]
        while any_of(numbered is not None):
            if numbered is None:
                yield None, again
            else:
                yield numbered
                again = numbered[1]
            numbered = next(batches, None)

    def cut(self, name: str, tensor: Tensor) -> Tensor:
        """Cut this process's share out of a tensor that is as large as a parameter; any other is what it is."""
        if name not in self._places or tensor.shape != self._whole[name].shape:
            return tensor
        parts = tensor.chunk(world())
        return parts[rank()].clone() if rank() < len(parts) else tensor[:0].clone()

    def is_part(self, name: str, tensor: Tensor) -> bool:
        """Tell whether a tensor that belongs to a parameter, with a number for each of its own, is this process's share of one."""
        return name in self._places and tensor.shape == self.parameters[name].shape

    @contextlib.contextmanager
    def model_whole(self) -> Iterator[None]:
        """Within the block the first process's model holds every parameter whole, on the host. All processes must enter it."""
        whole = {name: _gathered(self._whole[name]) for name in self._places}
        if rank() == 0:
            self._put({name: nn.Parameter(tensor) for name, tensor in whole.items()})
        try:
            yield
        finally:
            if rank() == 0:
                self._put({name: self._whole[name] for name in whole})

    def _put(self, parameters: Mapping[str, nn.Parameter]) -> None:
        for name, parameter in parameters.items():
            for place in self._places[name]:
                place.module._parameters[place.name] = parameter

    def _share(self, name: str) -> nn.Parameter:
        return nn.Parameter(_own(self._whole[name]).detach()) if name in self._places else self._whole[name]

    def _taken(self, name: str) -> Tensor:
        parameter = self._whole[name]
        gradient, parameter.grad = parameter.grad, None
        if gradient is None:
            return torch.zeros_like(self.parameters[name])
        return _own(gradient) if name in self._places else gradient


def _own(shared: Tensor) -> Tensor:
    """This process's share of what is shared out, a ``DTensor``."""
    share: Tensor = shared.to_local()  # type: ignore[attr-defined]
    return share


@torch.no_grad()
def _gathered(shared: Tensor) -> Tensor:
    """A tensor put together from all processes, on the first one's host; nothing in the others, all of which must call it."""
    whole: Tensor = shared.full_tensor()  # type: ignore[attr-defined]
    return torch.empty(0) if rank() else whole.cpu()


Sharding = Callable[[Model, Objective], Shares]


def replicated(model: Model, objective: Objective) -> Shares:
    """Every process holds all that is trained: any number of processes gives the same bits."""
    return Shares(trainable(model, objective))


def fully_sharded(model: Model, objective: Objective) -> Shares:
    """Every process holds a share of the backbone's layers that are trained whole, and all of the rest.

    Sums over processes are in the order of the library's: another number of them gives other last bits. Alone, and where no such
    layer is trained, it is ``replicated``.

    Source: Zhao et al., "PyTorch FSDP: Experiences on Scaling Fully Sharded Data Parallel" (2023); torch's ``fully_shard``.

    Raises:
        ConfigError: the model was shared out before.
    """
    if world() == 1:
        return replicated(model, objective)
    from torch.distributed.device_mesh import init_device_mesh  # a second of imports, which one process alone does without
    from torch.distributed.fsdp import FSDPModule, MixedPrecisionPolicy, fully_shard, register_fsdp_forward_method

    if isinstance(model, FSDPModule):
        raise ConfigError("sharding.fully_sharded: the model is shared out already; a stage trains a shared model once")
    units = shared_units(model)
    if not units:
        return replicated(model, objective)
    # What a layer returns is written into by nobody: neither here nor in the libraries' models.
    warnings.filterwarnings("ignore", "FSDP2-wrapped module .* returned a view tensor")
    mesh = init_device_mesh(next(model.parameters()).device.type, (world(),))
    for module, method in units:
        [dtype] = _read_in(module)
        policy = MixedPrecisionPolicy(param_dtype=dtype, reduce_dtype=torch.float32, cast_forward_inputs=False)
        read_whole(module)  # the policy rounds what is gathered
        fully_shard(module, mesh=mesh, reshard_after_forward=True, mp_policy=policy)
        if method != "forward":
            register_fsdp_forward_method(module, method)
    fully_shard(model, mesh=mesh, ignored_params=set(model.parameters()))  # it holds nothing; all units' gathering is arranged here
    register_fsdp_forward_method(model, "begin")
    for module, _ in units:
        module.set_gradient_divide_factor(1.0)  # type: ignore[operator]  # losses are divided by the sequences of all
        module.set_force_sum_reduction_for_comms(True)  # type: ignore[operator]  # gloo knows no other
    return Shares(trainable(model, objective), _places(model))


def check_shared(optimizer: torch.optim.Optimizer, trials: int) -> None:
    """Refuse what cannot be trained with layers shared out.

    Args:
        optimizer: of the parameters.
        trials: trainings of this model, one after the other.

    Raises:
        ConfigError: matrices are wanted whole, or the model several times.
    """
    if isinstance(optimizer, TwoOptimizers):
        raise ConfigError(
            "loop.fit.sharding = @sharding.fully_sharded shares matrices out and Muon needs whole ones: use @optim.adamw"
        )
    if trials > 1:
        raise ConfigError(
            "loop.fit.sharding = @sharding.fully_sharded shares a model out for one training, and CONTROL_RATES asks for "
            f"{trials}: name one rate, or use @sharding.replicated"
        )


def shared_units(model: Model) -> list[tuple[nn.Module, str]]:
    """List what ``fully_sharded`` shares out, the backbone's layers that are trained whole, with the method that runs each."""
    return [(module, method) for module, method in model.shard_units() if _can_be_shared(module)]


def _can_be_shared(module: nn.Module) -> bool:
    """Whether all of a module is trained, and read in one precision."""
    return all(parameter.requires_grad for parameter in module.parameters()) and len(_read_in(module)) == 1


def _read_in(module: nn.Module) -> set[torch.dtype]:
    """The precisions in which a module reads its weights."""
    return {read_dtype(part, name) for part in module.modules() for name, _ in part.named_parameters(recurse=False)}


def _places(model: Model) -> dict[str, list[Place]]:
    """Every place of each parameter that is shared out, by the parameter's first name."""
    from torch.distributed.tensor import DTensor

    names = {id(parameter): name for name, parameter in model.named_parameters() if isinstance(parameter, DTensor)}
    places: dict[str, list[Place]] = {}
    for module in model.modules():
        for name, parameter in module._parameters.items():
            if id(parameter) in names:
                places.setdefault(names[id(parameter)], []).append(Place(module, name))
    return places
