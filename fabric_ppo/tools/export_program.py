"""The program that is written beside an exported policy: it plays episodes without this package."""

from __future__ import annotations

import json
from typing import Any

from fabric_ppo.envs.frame_stack import num_frames
from fabric_ppo.envs.ids import single_id
from fabric_ppo.envs.nested_actions import nested
from fabric_ppo.envs.spaces import EnvSpec, is_mask
from fabric_ppo.tools.export_interface import ACTION, MEMORY, NEXT_MEMORY, NOISE, Interface, Port

_MASK_FROM_INFO = "fabric_ppo.envs.masks:action_mask_from_info"
_TEMPLATE = '''\
"""Play episodes of {env_id} with {file}; needs {needs}: python {program} [SEED ...]."""

{imports}

{load}
for seed in map(int, sys.argv[1:] or ["0"]):
{make}
    (obs, info), total, ended = env.reset(seed=seed), 0.0, False
{begin}    while not ended:
        # noise of zeros: the most probable actions; {noise} samples
        inputs = {{
{inputs}
        }}
{run}
        obs, reward, terminated, truncated, info = env.step({action})
        total, ended = total + float(reward), terminated or truncated
    print(f"seed {{seed}}: return {{total}}")
'''

_BATCH_TEMPLATE = '''\
"""Act once with {file}, on zeros; needs {needs}.

{env_id} makes a batch of environments: give the inputs a row for each.
"""

{imports}

{load}
{begin}# noise of zeros: the most probable actions; {noise} samples
inputs = {{
{inputs}
}}
{run}
print({action})
'''


def program_of(spec: EnvSpec, interface: Interface, to: str, file: str, program: str) -> str:
    """Return the text of a program that plays episodes with an exported policy.

    It prints a line `seed S: return R` for each seed on its command line. Noise is zero, so that
    it takes the most probable actions. Where only a batch of environments can be made, it acts on an
    observation of zeros.

    Args:
        spec: the environment.
        interface: the policy's.
        to: `onnx` or `torchscript`.
        file: name of the policy's file, beside the program.
        program: name of the program's file.
    """
    is_onnx, is_single = to == "onnx", bool(single_id(spec.env_id))
    package = "onnxruntime" if is_onnx else "torch"
    memory = interface.inputs[interface.num_parts + 1 :]
    make, needed = _environment(spec) if is_single else ([], [])
    packages = {*needed, "import numpy as np", f"import {package}", *["import gymnasium"] * is_single}
    modules = ["import pathlib", *["import sys"] * is_single]
    # the lines of an episode are those of a loop within a loop
    template, outer, inner = (_TEMPLATE, " " * 4, " " * 8) if is_single else (_BATCH_TEMPLATE, "", "")
    return template.format(
        env_id=_text(spec.env_id),
        file=_text(file),
        program=_text(program),
        needs=f"{package} and {'gymnasium' if is_single else 'numpy'}",
        imports="\n".join([*modules, "", *sorted(packages, key=_order)]),
        load=_load(is_onnx, file),
        make="\n".join(f"{outer}{line}" for line in make),
        begin="".join(f"{outer}{MEMORY} = {_zeros(port, is_onnx)}\n" for port in memory),
        noise=_drawn(interface),
        inputs="\n".join(f"{inner}    {line}," for line in _inputs(spec, interface, is_onnx, is_single)),
        run="\n".join(f"{inner}{line}" for line in _run(interface, is_onnx)),
        action=_action(spec, interface) if is_single else ", ".join(_variables(interface)),
    )


def _order(line: str) -> tuple[bool, str]:
    """Return the place of an import: `import` before `from`, by name."""
    return line.startswith("from"), line


def _quoted(key: str | int) -> str:
    """Return a text or a number as Python."""
    return json.dumps(key, ensure_ascii=False)


def _text(name: str) -> str:
    """Return a name as it may stand in a docstring."""
    return name.encode("unicode_escape").decode().replace('"', "'")


def _environment(spec: EnvSpec) -> tuple[list[str], list[str]]:
    """Return the lines that make the environment, and the imports that these need."""
    options = [f"{key}={value!r}" for key, value in spec.env_kwargs.items()]
    imports = []
    if spec.env_id.startswith("ALE/") or spec.is_atari:
        imports.append("import ale_py")
    if spec.is_atari:
        options += ["frameskip=1", 'obs_type="grayscale"']
    lines = [f"env = gymnasium.make({', '.join([_quoted(single_id(spec.env_id)), *options])})"]
    if spec.is_atari:
        lines.append("env = gymnasium.wrappers.FrameStackObservation(gymnasium.wrappers.AtariPreprocessing(env), 4)")
    for wrapper in _wrappers(spec):
        module, _, function = wrapper.partition(":")
        imports.append(f"from {module} import {function}")
        lines.append(f"env = {function}(env)")
    if (frames := num_frames(spec.observation)) > 1:
        lines.append(f"env = gymnasium.wrappers.FrameStackObservation(env, {frames})")
    return lines, imports


def _wrappers(spec: EnvSpec) -> list[str]:
    """Return the wrappers of the user's own, the innermost first."""
    given = [] if spec.is_atari else [each for each in spec.wrapper.split(",") if each]
    return given[:-1] if _mask_is_in_info(spec) else given


def _mask_is_in_info(spec: EnvSpec) -> bool:
    """Return True if the last wrapper takes the action mask from `info`: the program does."""
    return spec.wrapper.split(",")[-1] == _MASK_FROM_INFO


def _load(is_onnx: bool, file: str) -> str:
    path = f"pathlib.Path(__file__).with_name({_quoted(file)})"
    return f"session = onnxruntime.InferenceSession({path})" if is_onnx else f"policy = torch.jit.load({path}).eval()"


def _inputs(spec: EnvSpec, interface: Interface, is_onnx: bool, is_single: bool) -> list[str]:
    """Return the entries of the dict of inputs, as Python: of the observation `obs`, or of one of zeros."""
    lines = [] if is_single else [f"{_quoted(port.name)}: {_zeros(port, is_onnx)}" for port in interface.obs]
    for port in interface.obs if is_single else ():
        array = f'np.asarray({_part(spec, port)}, "{port.dtype}").reshape({", ".join(map(str, (1, *port.shape)))})'
        lines.append(f"{_quoted(port.name)}: {array if is_onnx else f'torch.from_numpy({array})'}")
    noise = interface.inputs[interface.num_parts]
    lines.append(f'"{NOISE}": {_zeros(noise, is_onnx)}')
    return [*lines, f'"{MEMORY}": {MEMORY}'] if interface.has_memory else lines


def _part(spec: EnvSpec, port: Port) -> str:
    """Return a part of the observation, as Python."""
    masks = is_mask(port.path, spec.action)
    if _mask_is_in_info(spec):
        if masks:
            mask = "".join(["info", *(f"[{_quoted(key)}]" for key in port.path)])
            # of a MultiDiscrete, Gymnasium's are a tuple, with one for each of its entries
            is_tuple = dict(spec.action.leaves)[port.path[1:]].kind == "multi_discrete"
            return f"np.hstack({mask})" if is_tuple else mask
        return "".join(["obs", *(f"[{_quoted(key)}]" for key in port.path[1:])])
    # of stacked frames, a mask is the newest alone
    newest = "[-1]" if masks and num_frames(spec.observation) > 1 else ""
    return "".join(["obs", *(f"[{_quoted(key)}]" for key in port.path), newest])


def _zeros(port: Port, is_onnx: bool) -> str:
    """Return zeros for one observation, as Python."""
    zeros = f'np.zeros({(1, *port.shape)}, "{port.dtype}")'
    return zeros if is_onnx else f"torch.from_numpy({zeros})"


def _variables(interface: Interface) -> list[str]:
    """Return the program's names for the parts of the action."""
    count = interface.num_actions
    return [ACTION] if count == 1 else [f"{ACTION}_{index}" for index in range(count)]


def _run(interface: Interface, is_onnx: bool) -> list[str]:
    """Return the lines that compute the action."""
    variables, names = _variables(interface), [port.name for port in interface.actions]
    if is_onnx:
        variables, names = variables + [MEMORY] * interface.has_memory, names + [NEXT_MEMORY] * interface.has_memory
        targets = ", ".join(variables) if len(variables) > 1 else f"({variables[0]},)"
        return [f"{targets} = session.run([{', '.join(map(_quoted, names))}], inputs)"]
    lines = [f"{each} = out[{_quoted(name)}].numpy()" for each, name in zip(variables, names, strict=True)]
    return ["out = policy(inputs)", *lines, *[f'{MEMORY} = out["{NEXT_MEMORY}"]'] * interface.has_memory]


def _action(spec: EnvSpec, interface: Interface) -> str:
    """Return one action as the environment takes it, as Python."""
    leaves = zip(_variables(interface), spec.action.leaves, strict=True)
    texts = [f"int({each}[0])" if leaf.kind == "discrete" else f"{each}[0]" for each, (_, leaf) in leaves]
    return _as_python(nested([path for path, _ in spec.action.leaves], texts))


def _as_python(value: Any) -> str:
    """Return dictionaries and tuples of Python's expressions as one."""
    if isinstance(value, dict):
        return "{" + ", ".join(f"{_quoted(key)}: {_as_python(each)}" for key, each in value.items()) + "}"
    if isinstance(value, tuple):
        return f"({', '.join(map(_as_python, value))}{',' * (len(value) == 1)})"
    return str(value)


def _drawn(interface: Interface) -> str:
    """Return the noise of a sampled action, as Python."""
    names = {"normal": "standard_normal"}
    drawn = [f"np.random.{names.get(kind, kind)}(size={(1, count)})" for kind, count in interface.noise_parts]
    return drawn[0] if len(drawn) == 1 else f"np.concatenate([{', '.join(drawn)}], axis=1)"
