"""The networks that vet can tune: a wrapped, compiled, quantised, empty or tuned network is refused."""

from torch import nn

from vet.core.tuned_network import MARK, MERGED_HERE, TunedNetwork
from vet.errors import UserError, shown

# What wraps a network, by the name of the class, and what to do
WRAPPERS = dict(
    DistributedDataParallel='give the network itself, net.module, and wrap the tuned network',
    DataParallel='give the network itself, net.module, and wrap the tuned network',
    FullyShardedDataParallel='tune the network first, and wrap the tuned network',
    FSDPModule='tune the network first, and shard the tuned network',
    OptimizedModule='give the network itself, net._orig_mod, and compile the tuned network',
    ScriptModule='give the network that was scripted, because TorchScript keeps no modules to edit',
    PeftModel='give the plain network, peft_model.unload()',
)
QUANTISED = ('bitsandbytes', 'torchao', 'optimum', 'auto_gptq', 'awq', 'hqq')


def _require_plain(net: nn.Module) -> None:
    """UserError for a wrapped, compiled or quantised network, and for weights without numbers."""
    for kind in type(net).__mro__:
        if kind.__name__ in WRAPPERS:
            raise UserError(f'net is wrapped in a {kind.__name__}: {WRAPPERS[kind.__name__]}.')
    for path, module in net.named_modules():
        home = type(module).__module__
        tensors = [*module.parameters(recurse=False), *module.buffers(recurse=False)]
        homes = [type(tensor).__module__ for tensor in tensors]
        weights = [
            parameter for parameter in module.parameters(recurse=False) if not parameter.is_floating_point()
        ]
        if 'quantized' in home or any(one.startswith(QUANTISED) for one in (home, *homes)) or weights:
            raise UserError(
                f'{path!r} ({type(module).__name__}) is quantised, and vet edits weights of floating point '
                'numbers. Tune the network before it is quantised. merge() of the tuned network gives a '
                'plain network, which you can quantise.'
            )
        if any(tensor.is_inference() for tensor in tensors):
            raise UserError(
                f'{path!r} ({type(module).__name__}) was made within torch.inference_mode(), so that its '
                'weights can never train. Build the network outside of inference_mode().'
            )
        if any(tensor.is_meta for tensor in tensors):
            raise UserError(
                f'{path!r} ({type(module).__name__}) is on the meta device, without numbers. Load the '
                'weights first: net.to_empty(device="cpu"), then net.load_state_dict(…).'
            )


def require_network(net: object) -> None:
    """UserError if `net` is no plain network, or is tuned already."""
    if isinstance(net, type) and issubclass(net, nn.Module):
        raise UserError(f'net is the class {net.__name__}; give a network: {net.__name__}(…).')
    if not isinstance(net, nn.Module):
        raise UserError(f'net is {shown(net)}; allowed: a torch.nn.Module, such as timm.create_model(…).')
    _require_plain(net)
    if not any(parameter.is_floating_point() for parameter in net.parameters()):
        raise UserError(
            f'net is {type(net).__name__}, which has no parameters, so that there is nothing to tune. Give a '
            'network with weights.'
        )
    mark = net.__dict__.get(MARK)
    if mark is MERGED_HERE:
        raise UserError(
            f'tuners are merged into this {type(net).__name__}, and unmerge() can still take them out. Tune '
            'a copy: vet.tune(copy.deepcopy(net), …). Or call unmerge() of the tuned network first.'
        )
    if mark or isinstance(net, TunedNetwork):
        raise UserError(
            f'this {type(net).__name__} is tuned already. Call detach() of the tuned network first, or give '
            'all tuners at once: vet.tune(net, vet.LoRA(8), vet.BitFit()).'
        )
