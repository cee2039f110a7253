import itertools

import numpy as np
import pytest

from search_spaces.allocation import Allocation, Choice
from search_spaces.costs import memory_bytes
from search_spaces.inventory import Inventory, TargetModule
from search_spaces.spaces import make_space
from tune.search import knapsack
from tune.search.budget import BudgetSolver, space_choices

SHAPES = ((64, 64), (64, 64), (128, 64), (64, 128), (192, 64))


def inventory_of(modules: int, factor: int = 1) -> Inventory:
    return Inventory(
        model="made up",
        targets=tuple(
            TargetModule(
                name=f"blocks.{number // 5}.m{number % 5}",
                out_features=factor * SHAPES[number % 5][0],
                in_features=factor * SHAPES[number % 5][1],
                part="attention",
                block=number // 5,
            )
            for number in range(modules)
        ),
        other_parameters=100,
    )


def few(generator: np.random.Generator, inventory: Inventory) -> dict[str, list[Choice]]:
    """Return some of the choices of each module, so that all allocations can be listed."""
    every = [Choice(bits, rank) for bits in (2, 3, 4, 8, 16) for rank in (0, 2, 8)]
    counts = generator.integers(1, 6, len(inventory.names))
    return {
        name: [every[number] for number in generator.choice(len(every), count, replace=False)]
        for name, count in zip(inventory.names, counts, strict=True)
    }


def table(solver: BudgetSolver, values: np.ndarray) -> dict[tuple[str, Choice], float]:
    return dict(zip(solver.pairs, map(float, values), strict=True))


def total(allocation: Allocation, known: dict[tuple[str, Choice], float]) -> float:
    return sum(known[pair] for pair in allocation.choices.items())


def every_allocation(choices: dict[str, list[Choice]]) -> list[Allocation]:
    return [
        Allocation(dict(zip(choices, picked, strict=True)))
        for picked in itertools.product(*choices.values())
    ]


def draw(generator: np.random.Generator, count: int, kind: int) -> np.ndarray:
    """Return values of three kinds: any, with many ties, and over many magnitudes."""
    if kind == 0:
        return generator.normal(size=count)
    if kind == 1:
        return generator.integers(0, 3, count).astype(float)
    return np.exp(generator.normal(size=count) * 4)


@pytest.mark.parametrize("seed", range(60))
def test_agrees_with_brute_force(seed: int) -> None:
    generator = np.random.default_rng(seed)
    inventory = inventory_of(int(generator.integers(1, 6)))
    choices = few(generator, inventory)
    solver = BudgetSolver(inventory, choices)
    values = draw(generator, len(solver.pairs), seed % 3)
    known = table(solver, values)
    scored = [(memory_bytes(a, inventory), total(a, known)) for a in every_allocation(choices)]
    sizes = sorted({size for size, _ in scored})
    assert solver.smallest_bytes == sizes[0]
    # At exact sizes, one byte below the next, and beyond the largest.
    limits = [*generator.choice(sizes, 3), sizes[-1] + 5, sizes[0], sizes[-1] - 1]
    for limit in (int(value) for value in limits if value >= sizes[0]):
        found = solver.solve(values, limit)
        assert memory_bytes(found, inventory) <= limit
        least = min(loss for size, loss in scored if size <= limit)
        assert total(found, known) == pytest.approx(least, rel=1e-12, abs=1e-12)


@pytest.mark.parametrize("seed", range(10))
def test_ties_agree_with_brute_force(seed: int) -> None:
    generator = np.random.default_rng(seed)
    inventory = inventory_of(4)
    choices = {
        name: [Choice(bits, rank) for bits in (2, 4, 8) for rank in (0, 2)]
        for name in inventory.names
    }
    group = inventory.names[1:3]
    solver = BudgetSolver(inventory, choices, [group])
    known = table(solver, draw(generator, len(solver.pairs), seed % 3))

    def tied(allocation: Allocation) -> bool:
        first, second = (allocation.choices[name] for name in group)
        return first == second

    allowed = [a for a in every_allocation(choices) if tied(a)]
    for limit in generator.choice([memory_bytes(a, inventory) for a in allowed], 4):
        found = solver.solve(np.array(list(known.values())), int(limit))
        assert tied(found) and memory_bytes(found, inventory) <= limit
        fitting = [a for a in allowed if memory_bytes(a, inventory) <= limit]
        least = min(total(a, known) for a in fitting)
        assert total(found, known) == pytest.approx(least, rel=1e-12, abs=1e-12)


def test_limits_are_met_to_the_byte() -> None:
    inventory = inventory_of(2)
    choices = {name: [Choice(2, 0), Choice(4, 0)] for name in inventory.names}
    solver = BudgetSolver(inventory, choices)
    values = solver.values(
        lambda name, choice: -choice.bits - 0.1 * name.endswith("1") * choice.bits
    )
    small, large = (
        solver.smallest_bytes,
        memory_bytes(Allocation(dict.fromkeys(inventory.names, Choice(4, 0))), inventory),
    )
    half = (small + large) // 2
    bits = [
        [c.bits for c in a.choices.values()]
        for a in solver.frontier(values, [small, half - 1, half, large - 1, large])
    ]
    assert bits == [[2, 2], [2, 2], [2, 4], [2, 4], [4, 4]]


def test_refuses_a_limit_that_nothing_meets() -> None:
    inventory = inventory_of(3)
    solver = BudgetSolver(inventory, space_choices(make_space("joint", inventory)))
    with pytest.raises(ValueError, match=rf"at least .* \({solver.smallest_bytes} bytes\)"):
        solver.solve(np.zeros(len(solver.pairs)), solver.smallest_bytes - 1)


def test_refuses_values_that_are_no_numbers() -> None:
    inventory = inventory_of(2)
    solver = BudgetSolver(inventory, space_choices(make_space("joint", inventory)))
    values = np.zeros(len(solver.pairs))
    values[0] = np.nan
    with pytest.raises(ValueError, match="finite"):
        solver.solve(values, solver.smallest_bytes)
    with pytest.raises(ValueError, match="one for each"):
        solver.solve(np.zeros(3), solver.smallest_bytes)


def test_refuses_impossible_groups() -> None:
    inventory = inventory_of(3)
    names = inventory.names
    choices = {names[0]: [Choice(2, 0)], names[1]: [Choice(4, 0)], names[2]: [Choice(4, 0)]}
    with pytest.raises(ValueError, match="in common"):
        BudgetSolver(inventory, choices, [names[:2]])
    with pytest.raises(ValueError, match="twice"):
        BudgetSolver(inventory, choices, [names[1:], names[1:]])
    with pytest.raises(ValueError, match="no module"):
        BudgetSolver(inventory, choices, [("absent", names[0])])


def damages(solver: BudgetSolver, generator: np.random.Generator) -> np.ndarray:
    """Return values as a visibility table has them: per module, by bits, less by rank."""
    scale = {name: np.exp(generator.normal() * 1.5) for name in dict(solver.pairs)}
    return solver.values(
        lambda name, choice: (
            scale[name]
            * (2.0 ** (-2 * choice.bits) * (1 + 0.3 * generator.random()) - 0.01 * choice.rank**0.5)
        )
    )


def alike(solver: BudgetSolver, inventory: Inventory) -> np.ndarray:
    """Return values that depend on nothing but the shape: hundreds of modules are tied."""
    weights = {target.name: target.weights for target in inventory.targets}
    return solver.values(
        lambda name, choice: (1 - 0.02 * choice.rank**0.5) * weights[name] * 4.0**-choice.bits
    )


@pytest.mark.parametrize("kind", ["table", "noise", "alike"])
def test_hundreds_of_modules_leave_few_states(kind: str) -> None:
    inventory = inventory_of(500, factor=16)
    solver = BudgetSolver(inventory, space_choices(make_space("joint", inventory)))
    generator = np.random.default_rng(0)
    noise = generator.normal(size=len(solver.pairs))
    values = {
        "table": damages(solver, generator),
        "noise": noise,
        "alike": alike(solver, inventory),
    }[kind]
    known = table(solver, values)
    largest = memory_bytes(make_space("joint", inventory).largest(), inventory)
    limits = [int(v) for v in np.linspace(solver.smallest_bytes, largest, 12)]
    found = solver.frontier(values, limits)
    assert all(memory_bytes(a, inventory) <= n for a, n in zip(found, limits, strict=True))
    losses = [total(allocation, known) for allocation in found]
    assert losses == sorted(losses, reverse=True)
    # Each takes a tenth of a microsecond.
    if kind == "alike":
        assert solver.expanded < 1.1 * knapsack.MOST_EXPANDED * len(limits)
        assert solver.unproven < 1e-3 * max(map(abs, losses))
    else:
        assert solver.expanded < 50_000 * len(limits)
        assert solver.unproven == 0


def test_says_what_it_could_not_prove(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(knapsack, "MOST_KEPT", 2)
    generator = np.random.default_rng(3)
    inventory = inventory_of(40)
    solver = BudgetSolver(inventory, space_choices(make_space("joint", inventory)))
    values = generator.normal(size=len(solver.pairs))
    known = table(solver, values)
    limits = [solver.smallest_bytes + int(n) for n in generator.integers(1000, 60_000, 20)]
    cut = [(solver.solve(values, n), solver.unproven) for n in limits]
    monkeypatch.undo()
    worse = []
    for (allocation, unproven), limit in zip(cut, limits, strict=True):
        best = total(solver.solve(values, limit), known)
        assert solver.unproven == 0
        worse.append(total(allocation, known) - best)
        assert -1e-12 <= worse[-1] <= unproven + 1e-12
    assert max(unproven for _, unproven in cut) > 0


@pytest.mark.parametrize("kind", range(3))
@pytest.mark.parametrize("seed", range(8))
def test_every_point_of_the_path_is_the_best_of_its_bytes(seed: int, kind: int) -> None:
    """From the smallest allocation to the smallest of all that lose least."""
    generator = np.random.default_rng(seed)
    space = make_space("joint", inventory_of(4))
    groups = [space.inventory.names[:2]] if seed % 2 else []
    solver = BudgetSolver(space.inventory, space_choices(space), groups)
    values, others = draw(generator, len(solver.pairs), kind), generator.random(len(solver.pairs))
    sizes, sums, added = solver.path(values, others)
    known, beside = table(solver, values), table(solver, others)
    found = solver.frontier(values, sizes.tolist())

    assert (np.diff(sizes) > 0).all()
    assert (np.diff(sums) < 0).all()
    assert sizes[0] == solver.smallest_bytes
    np.testing.assert_allclose(sums, [total(one, known) for one in found], rtol=1e-9, atol=1e-12)
    assert sums[-1] == pytest.approx(total(solver.solve(values, 10**9), known))
    if kind == 0:
        # Without ties each is one allocation.
        np.testing.assert_allclose(added, [total(one, beside) for one in found])
