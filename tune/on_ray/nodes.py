"""What the nodes of a cluster have, and whether one can hold what a study asks for."""

import importlib.metadata
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any

import ray
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from alrq_core.memory.host import Host
from search_spaces.costs import format_gigabytes
from tune.mistakes import said
from tune.on_ray.autoscaler import Request, autoscaler

Tell = Callable[[str], None]

# Between notes of what is waited for.
NOTE_SECONDS = 30.0
# In which an autoscaler begins to start a node for what waits, if it ever will: it looks every 5 s.
VERDICT_SECONDS = 20.0
POLL_SECONDS = 0.5
# Between counts of places for trials; and trials that wait for nodes that an autoscaler starts.
COUNT_SECONDS, GROWING = 5.0, 4
# Enough of a GPU for a task to see it.
GLIMPSE = 0.001
# As Ray spells them; with what people read.
UNITS = {"CPU": "CPU", "GPU": "GPU", "memory": "of memory"}


@dataclass(frozen=True, kw_only=True)
class Node:
    """A node that is alive.

    Attributes:
        id: Ray's.
        address: Of its machine.
        resources: What it offers, by Ray's names; memory in bytes.
    """

    id: str
    address: str
    resources: Request

    def holds(self, request: Request) -> bool:
        """Tell whether it meets a request while it does nothing else."""
        return all(self.resources.get(name, 0) >= amount for name, amount in request.items())

    @property
    def kind(self) -> tuple[tuple[str, float], ...]:
        """What nodes of one kind share: processors and cards, and the cards' type."""
        told = {
            name: amount
            for name, amount in self.resources.items()
            if name in ("CPU", "GPU") or name.startswith("accelerator_type:")
        }
        return tuple(sorted(told.items()))


def nodes() -> list[Node]:
    """Return the nodes of the cluster that are alive, those with the most memory first."""
    found = [
        Node(id=node["NodeID"], address=node["NodeManagerAddress"], resources=node["Resources"])
        for node in ray.nodes()
        if node["Alive"]
    ]
    return sorted(found, key=lambda node: -node.resources.get("memory", 0))


def places(request: Request) -> int:
    """Return how many of a request the nodes that are alive hold together."""
    # A third of a card fits three times, whatever rounding says.
    each = (
        min(int(node.resources.get(name, 0) / amount + 1e-6) for name, amount in request.items())
        for node in nodes()
    )
    return sum(each)


class Places:
    """How many trials shall be given to a cluster, which may grow and shrink."""

    def __init__(self, request: Request) -> None:
        """Count places for what each trial asks for, when first asked."""
        self._request, self._found, self._until = request, 0, 0.0

    def __call__(self) -> int:
        """Return it, no older than a few seconds.

        One waits beyond those that have a place, so that none is ever idle; more would be proposed
        without knowing what they could know. Where an autoscaler starts nodes for what waits, as
        many wait as it shall start at a time.
        """
        now = time.monotonic()
        if now >= self._until:
            ahead = 1 if autoscaler() is None else GROWING
            self._found, self._until = places(self._request) + ahead, now + COUNT_SECONDS
        return self._found


def hosts(device: str | None, cpu_dtype: str | None, tell: Tell) -> list[Host]:
    """Return what each node that will train has; of each kind, one is asked by a task on it.

    Those with a GPU where there are any, or `device` says so; else all with a CPU. Where there are
    none yet, the autoscaler gets to start one.

    Args:
        device: As given to `--device`; None for the fastest.
        cpu_dtype: See `pick_compute_dtype`.
        tell: Where it is said what is waited for.

    Raises:
        ValueError: The cluster has no such node and can't start one, or alrq doesn't run on it.
    """
    if device == "mps":
        raise ValueError(
            "`--device` must be cpu or cuda with --address, got 'mps', of which Ray knows nothing. "
            "Leave --address out to use this machine."
        )
    one = {"CPU": 1.0} | ({"GPU": 1.0} if device == "cuda" else {})
    wait_for_room(one, tell)
    able = [node for node in nodes() if node.holds(one)]
    if device is None:
        with_gpu = [node for node in able if node.resources.get("GPU")]
        device, able = ("cuda", with_gpu) if with_gpu else ("cpu", able)
    # Of those of one kind, the one with the least memory.
    asked = {node.kind: (node, _probe(node, device, cpu_dtype)) for node in able}
    found = {kind: _answer(node, probe, tell) for kind, (node, probe) in asked.items()}
    return [found[node.kind] for node in able]


def wait_for_room(request: Request, tell: Tell) -> None:
    """Return once a node is there that can hold what each trial asks for.

    Raises:
        ValueError: None can, nor any that the autoscaler would start; both figures are named.
    """
    if _holds(request):
        return
    if autoscaler() is None:
        raise _too_small(request, "and no autoscaler that could start another")
    # Its autoscaler starts nodes for what waits.
    waiting = _nothing.options(**_options(request)).remote()
    wanted = f"a node with {amounts(request)}"
    try:
        for waited in _until_done(waiting, tell, lambda: wanted + _failures()):
            if _holds(request):
                # It has come, and takes a while to start its first worker.
                continue
            state = autoscaler()
            if state is None or any(_equal(request, refused) for refused in state.refused):
                raise _too_small(request, "and its autoscaler can start no larger one")
            if waited > VERDICT_SECONDS and not (state.coming or state.failed):
                raise _too_small(request, f"and its autoscaler began none in {waited:.0f} s")
    except BaseException:
        # Never what is done: Ray 2.60 ends a process that cancels what is just being completed.
        ray.cancel(waiting)
        raise


def _holds(request: Request) -> bool:
    """Tell whether there is a node that can hold it."""
    return any(node.holds(request) for node in nodes())


def amounts(request: Request) -> str:
    """Return what a request asks for, in words."""
    said = []
    for name, amount in request.items():
        if amount and name in UNITS:
            size = format_gigabytes(int(amount)) if name == "memory" else f"{amount:g}"
            said.append(f"{size} {UNITS[name]}")
    return ", ".join(said)


def waiting_line(asked: str, seconds: float) -> str:
    """Return what trials wait for while none runs, and what is free."""
    free = amounts(ray.available_resources()) or "nothing"
    return f"waiting for a node with {asked} ({seconds:.0f} s); free on all together: {free}"


def of_ray(resources: Mapping[str, float]) -> dict[str, float]:
    """Return a request by Ray's names for nodes, from those that Tune takes."""
    names = {"cpu": "CPU", "gpu": "GPU"}
    return {names.get(name, name): amount for name, amount in resources.items() if amount}


@ray.remote(max_retries=2)
def _host(device: str, cpu_dtype: str | None) -> tuple[Host, str]:
    return Host.here(device, cpu_dtype), importlib.metadata.version("alrq")


@ray.remote(max_retries=0)
def _nothing() -> None:
    pass


def _probe(node: Node, device: str, cpu_dtype: str | None) -> Any:
    return on_node(node, _host, GLIMPSE if device == "cuda" else 0).remote(device, cpu_dtype)


def on_node(node: Node, task: Any, gpus: float = 0.0) -> Any:
    """Return a task that runs on a node, also while all its processors are taken."""
    place = NodeAffinitySchedulingStrategy(node.id, soft=False)
    return task.options(num_cpus=0, num_gpus=gpus, scheduling_strategy=place)


def _answer(node: Node, probe: Any, tell: Tell) -> Host:
    """Return what a node has, as far as Ray gives it to trials."""
    found: tuple[Host, str] = answer_of(node, probe, tell)
    host, version = found
    here = importlib.metadata.version("alrq")
    if version != here:
        raise ValueError(
            f"`--address` must be a cluster whose nodes have alrq {here}, as this machine has, got "
            f"{version} at {node.address}. Install one release on all of them."
        )
    memory = host.memory_bytes
    if host.device == "cpu":
        offered = int(node.resources.get("memory", 0))
        memory = offered if memory is None else min(memory, offered)
    cores = max(1, int(node.resources["CPU"]))
    return replace(host, memory_bytes=memory, cores=cores)


def answer_of(node: Node, task: Any, tell: Tell) -> Any:
    """Return what a task on a node answers, telling now and then what is waited for.

    Raises:
        ValueError: It fails.
    """
    try:
        for _ in _until_done(task, tell, lambda: f"an answer of the node at {node.address}"):
            pass
        return ray.get(task)
    except ray.exceptions.RayError as error:
        raise ValueError(
            f"`--address` must be a cluster whose nodes run alrq, got an error from the node at "
            f"{node.address} ({said(error)}). Install alrq and its requirements there, as here."
        ) from error


def _failures() -> str:
    """Return which nodes the autoscaler could not start, after a comma; nothing if it could."""
    state = autoscaler()
    failed = "; ".join(state.failed) if state is not None else ""
    return failed and f", of which the autoscaler could not start: {failed}"


def _until_done(task: Any, tell: Tell, what: Callable[[], str]) -> Iterator[float]:
    """Yield the seconds waited until a task is done, and tell every now and then."""
    started = told = time.monotonic()
    while not ray.wait([task], timeout=POLL_SECONDS)[0]:
        now = time.monotonic()
        if now - told >= NOTE_SECONDS:
            told = now
            tell(f"waiting for {what()} ({now - started:.0f} s)")
        yield now - started


def _options(request: Request) -> dict[str, float]:
    return {
        "num_cpus": request.get("CPU", 0),
        "num_gpus": request.get("GPU", 0),
        "memory": request.get("memory", 0),
    }


def _equal(request: Request, refused: Request) -> bool:
    """Tell whether both are one; Ray rounds parts of a GPU."""
    asked = {name: amount for name, amount in request.items() if amount}
    near = all(
        abs(refused.get(name, 0) - amount) <= 1e-3 * amount for name, amount in asked.items()
    )
    return near and set(refused) == set(asked)


def _too_small(request: Request, growing: str) -> ValueError:
    offers = {amounts({n: node.resources.get(n, 0) for n in UNITS}): None for node in nodes()}
    return ValueError(
        f"`--address` must be a cluster with a node that can hold a trial, which takes "
        f"{amounts(request)}, got nodes with {'; '.join(offers) or 'nothing'}, {growing}. Add "
        "a larger node, or use a smaller model, a smaller --batch-size, or another --device."
    )
