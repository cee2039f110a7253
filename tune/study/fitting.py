"""What a study runs in the memory that there is: its bits, its reference, how batches are cut."""

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, replace
from functools import partial
from typing import TypeVar

import torch

from alrq_core.data.encode import EncodedTask
from alrq_core.memory.batch_plan import (
    BatchPlan,
    DoesNotFitError,
    plan_batch,
    tensor_limit_bytes,
)
from alrq_core.memory.host import Host
from alrq_core.memory.prediction import base_bytes, build_bytes
from alrq_core.precision import stream_dtype
from search_spaces.allocation import Allocation
from search_spaces.costs import format_bytes, memory_bytes
from search_spaces.fixed import BASELINES, fixed_allocation, unavailable
from search_spaces.inventory import Inventory
from search_spaces.narrow import fewer_bits, target_bits
from search_spaces.spaces import Space
from tune.study.config import NO_REFERENCE, StudyConfig
from tune.study.plan import COMPARATOR
from tune.study.preparing import Preparing, codes_prepared, starts_prepared

Planned = TypeVar("Planned")


@dataclass(frozen=True, kw_only=True)
class Fitting:
    """What fits of a study.

    Attributes:
        space: Without the bits whose largest allocation doesn't fit.
        baselines: Fixed configurations that are trained as they are: all points of a fixed space.
        without: The others, and why.
        reference: The fixed configuration that trials start from; None to start from nothing.
        execution: `packed` or `dequantized`: see `Recipe`.
        batch: How a batch is cut, for the allocation that takes the most memory.
        preparing: How codes and starts are made.
    """

    space: Space
    baselines: Mapping[str, Allocation]
    without: Mapping[str, str]
    reference: str | None
    execution: str
    batch: BatchPlan
    preparing: Preparing

    @property
    def checkpointing(self) -> bool:
        """See `Recipe.gradient_checkpointing`."""
        return self.batch.checkpointing or self.preparing.checkpointing

    @property
    def comparator(self) -> str:
        """The configuration that all are compared to: B-FP, or where it doesn't fit the next."""
        if self.space.fixed or COMPARATOR in self.baselines:
            return COMPARATOR
        return next(iter(self.baselines))


def fitted(
    config: StudyConfig, inventory: Inventory, task: EncodedTask, space: Space, host: Host
) -> Fitting:
    """Return what fits on a host.

    A searched space loses its highest bits where they don't fit and the user asks for none by name.
    Where B-FP doesn't, B-Q4 takes its place as the reference and to compare with, so that who has
    room for a fine-tune in 4 bits and no more gets an answer all the same.

    Raises:
        DoesNotFitError: Not even the lowest bits fit, or the reference doesn't.
        ValueError: The reference can't be built here, or starts were to be screened without it.
    """
    trials = _Trials(config, inventory, task, host)
    narrower = () if space.fixed or config.bits is not None else fewer_bits(space)
    fitting, execution, batch, failure = trials.largest_space(space, narrower)
    baselines, without = space.points, dict[str, str]()
    if not space.fixed:
        baselines, without, batch = trials.baselines(fitting, execution, batch)
    starting = {} if space.fixed or config.reference == NO_REFERENCE else baselines
    codes, starts, failed = trials.preparing(fitting, starting)
    reference = _reference(config, space, starts, without, failed)
    if failure is not None:
        lost = [bits for bits in target_bits(space) if bits not in target_bits(fitting)]
        without[f"{', '.join(map(str, lost))} bits"] = str(failure)
    return Fitting(
        space=fitting,
        baselines=baselines,
        without=without,
        reference=reference,
        execution=execution,
        batch=batch,
        preparing=codes if reference is None else starts[reference],
    )


class _Trials:
    """Predicts the memory of a study's trials."""

    def __init__(
        self, config: StudyConfig, inventory: Inventory, task: EncodedTask, host: Host
    ) -> None:
        self._config, self._inventory, self._task = config, inventory, task
        self._host, self._device, self._dtype = host, host.device, host.dtype
        self._given = config.recipe.accumulation_steps or 1
        self._limit = self._memory_limit()
        # Of the search's own trials; the baselines may take what there is.
        most = config.max_training_memory_bytes
        self._search_limit = min((b for b in (self._limit, most) if b is not None), default=None)

    def largest_space(
        self, space: Space, narrower: Iterable[Space]
    ) -> tuple[Space, str, BatchPlan, DoesNotFitError | None]:
        """Return the first space whose largest allocation fits, how, and why the whole doesn't."""
        failures: list[DoesNotFitError] = []
        for candidate in (space, *narrower):
            try:
                return candidate, *self._execution(candidate), next(iter(failures), None)
            except DoesNotFitError as error:
                failures.append(error)
        raise failures[-1]

    def baselines(
        self, space: Space, execution: str, batch: BatchPlan
    ) -> tuple[Mapping[str, Allocation], dict[str, str], BatchPlan]:
        """Return the baselines that run, why others don't, and the plan that holds for all."""
        found, without = dict[str, Allocation](), dict[str, str]()
        largest = memory_bytes(space.largest(), self._inventory)
        for name in BASELINES:
            reason = unavailable(name, self._inventory, space.formats)
            if not found and self._config.comparator not in (None, name):
                reason = "it didn't fit in memory when the study began."
            if reason is not None:
                without[name] = reason
                continue
            allocation = fixed_allocation(name, self._inventory, space.formats)
            if memory_bytes(allocation, self._inventory) > largest:
                try:
                    self._check_build([allocation], self._limit)
                    own = self._batch(allocation, execution, self._limit)
                    either = batch.checkpointing or own.checkpointing
                except DoesNotFitError as error:
                    without[name] = str(error)
                    continue
                batch = replace(max(batch, own, key=_demand), checkpointing=either)
            found[name] = allocation
        if not found:
            reasons = "; ".join(f"{name}: {reason}" for name, reason in without.items())
            raise DoesNotFitError(
                "`--model` must leave memory to train something that all is compared to, got "
                f"{reasons} Use a smaller one."
            )
        return found, without, batch

    def preparing(
        self, space: Space, baselines: Mapping[str, Allocation]
    ) -> tuple[Preparing, dict[str, Preparing], dict[str, str]]:
        """Return how codes are made, and starts from each baseline, or why they can't be.

        Raises:
            DoesNotFitError: Not even the codes can be made.
        """
        codes = codes_prepared(self._config.recipe, space, self._limit)
        ways, failed = dict[str, Preparing](), dict[str, str]()
        for name, allocation in baselines.items():
            try:
                ways[name] = self._with_checkpointing(
                    partial(
                        starts_prepared,
                        codes,
                        self._inventory,
                        self._task,
                        allocation,
                        self._dtype,
                        self._device,
                        self._limit,
                    )
                )
            except DoesNotFitError as error:
                failed[name] = str(error)
        return codes, ways, failed

    def _with_checkpointing(self, plan: Callable[[bool], Planned]) -> Planned:
        """Return a plan with gradient checkpointing where the user asks for it, or where nothing
        fits without it.
        """
        asked = self._config.recipe.gradient_checkpointing
        try:
            return plan(bool(asked))
        except DoesNotFitError as failure:
            if asked is not None:
                raise
            try:
                return plan(True)
            except DoesNotFitError:
                raise
            except ValueError:
                # Its blocks can't be computed again.
                raise failure from None

    def _memory_limit(self) -> int | None:
        """Return what a trial may hold; None where the user has cut the batch."""
        if self._config.recipe.accumulation_steps is not None:
            return None
        limit = self._host.limit_bytes(self._config.device_memory_bytes)
        if limit is None or self._device != "cpu":
            return limit
        base, workers = base_bytes(self._inventory), self._host.cores
        if base >= workers * limit:
            raise DoesNotFitError(
                f"`--model` must leave memory beside its weights, which take {format_bytes(base)}, "
                f"got {format_bytes(workers * limit)} for {workers} workers that share them. "
                "Use a smaller one, a larger --device-memory, or fewer cores (taskset -c 0)."
            )
        return limit - base // workers

    def _execution(self, space: Space) -> tuple[str, BatchPlan]:
        """Return whether trials compute with dequantised copies, and how batches are cut.

        Copies save a twentieth to an eighth of a step on a CPU. They are made there unless the user
        says otherwise, or a batch would have to be cut for them.
        """
        points = list(space.points.values())
        widths = () if points else target_bits(space)
        limit = self._search_limit
        self._check_build([*points, *(space.nearest_uniform(bits, 0) for bits in widths)], limit)
        recipe, largest = self._config.recipe, space.largest()
        if recipe.execution is not None:
            return recipe.execution, self._batch(largest, recipe.execution, limit)
        if self._device == "cpu":
            try:
                plan = self._cut(largest, "dequantized", limit, bool(recipe.gradient_checkpointing))
            except DoesNotFitError:
                plan = None
            if plan is not None and plan.accumulation_steps == self._given:
                return "dequantized", plan
        return "packed", self._batch(largest, "packed", limit)

    def _batch(self, allocation: Allocation, execution: str, limit: int | None) -> BatchPlan:
        """Return how batches are cut for an allocation; micro-batches that the user gave stay."""
        return self._with_checkpointing(partial(self._cut, allocation, execution, limit))

    def _cut(
        self, allocation: Allocation, execution: str, limit: int | None, checkpointing: bool
    ) -> BatchPlan:
        recipe, task = self._config.recipe, self._task
        stored = memory_bytes(allocation, self._inventory)
        if limit is not None and stored > limit:
            raise DoesNotFitError(
                f"`--model` must leave memory beside its packed weights, got {format_bytes(stored)}"
                f" of {format_bytes(limit)}. Use a smaller one, fewer --bits, or a larger "
                "device."
            )
        plan = plan_batch(
            self._inventory,
            task.kind,
            len(task.label_names),
            allocation,
            recipe.batch_size // self._given,
            int(task.train.lengths.max()),
            self._dtype,
            limit,
            tensor_limit_bytes("mps" if self._config.mps_safe else self._device),
            answers=task.most_answers,
            dropout=recipe.dropout,
            dequantised=execution == "dequantized",
            checkpointing=checkpointing,
            passes=self._given,
            device_type=self._device,
        )
        if self._given == 1:
            return plan
        steps = plan.accumulation_steps * self._given
        why = f"micro-batch {plan.micro_batch} x {steps}, as --accumulation-steps asks for"
        return replace(plan, accumulation_steps=steps, reason=why)

    def _check_build(self, allocations: list[Allocation], limit: int | None) -> None:
        """Check that each can be built: to quantise takes more than to copy."""
        stream = stream_dtype(self._dtype, torch.device(self._device))
        needed = max(build_bytes(self._inventory, a, stream) for a in allocations)
        if limit is not None and needed > limit:
            raise DoesNotFitError(
                f"`--model` must leave memory to quantise its largest matrix, got a peak of "
                f"{format_bytes(needed)} of {format_bytes(limit)} while it is built. Use a smaller "
                "model, or fewer cores (taskset -c 0), which share the memory."
            )


def _demand(plan: BatchPlan) -> tuple[int, int]:
    return plan.accumulation_steps, plan.memory.peak_bytes


def _reference(
    config: StudyConfig,
    space: Space,
    starts: Mapping[str, Preparing],
    without: dict[str, str],
    failed: dict[str, str],
) -> str | None:
    """Return what trials start from; None in a fixed space, which is trained by the plain recipe.

    Raises:
        DoesNotFitError: The starts from no baseline can be made in this memory.
        ValueError: It can't run here, or starts were to be screened without it.
    """
    name = config.reference
    if name == NO_REFERENCE or space.fixed:
        if config.screen:
            raise ValueError(
                f"`--screen` must be 0 where trials start from nothing, got {config.screen}. "
                "Leave it out, or use a searched --space with a --reference."
            )
        return None
    if name is not None and name not in starts:
        raise ValueError(
            f"`--reference` must be one that the backend has and that fits in memory, got {name} "
            f"({(without | failed)[name]}) Use {' or '.join((*starts, NO_REFERENCE))}."
        )
    if not starts:
        # Of the smallest baseline.
        raise DoesNotFitError(
            f"{list(failed.values())[-1]} Or let trials start from nothing: --reference none."
        )
    return name or next(iter(starts))
