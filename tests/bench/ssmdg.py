"""The three-modality SSMDG step: a stack of runs against the plain loop, ``python -m tests.bench.ssmdg``.

Both sides start from the same parameters and see the same prepared batches of random features with a class structure;
measured is the step only (losses, gradients, update), in turns inside one process. ``tests/bench/reference.py`` is the
plain loop; a unit test shows that both compute the same.
"""

from __future__ import annotations

import argparse
import gc
import statistics
import time
from collections import defaultdict
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

from pipeline.process import configure_process

if __name__ == "__main__":  # before torch is imported: its thread pool reads the environment then
    configure_process()

import psutil
import torch
from torch import Tensor, nn
from torch.profiler import ProfilerActivity, profile
from torch.utils.flop_counter import FlopCounterMode

from heads.layers import StackedLinear
from heads.methods.ssmdg import SSMDG
from heads.network import HeadShape, Labeled, Unlabeled
from heads.randomness import RunStreams
from tests.bench.reference import Report, Settings, batch_of, build_optimiser, build_stack, reference_of

CLASSES, DOMAINS, CLIPS = 8, 2, 32
BATCHES = 4  # prepared batches, used in turn
WARMUP = 20  # steps on labeled clips before the measurement
FIRST = 3  # steps, at least, until the process has touched all the memory it needs; never timed
COPIES = 6  # of the parameters: themselves, two moments, two gradients, one for temporaries
OPERATORS = 20  # lines of the profile
GIB = 2**30


@dataclass(frozen=True)
class Size:
    """Feature dims of a setting, and a threshold with which both masks have clips after ``WARMUP`` steps."""

    dims: tuple[tuple[str, int], ...]
    threshold: float

    def shape(self, adapter: str) -> HeadShape:
        """The shape of the heads; hidden sizes as ``resolve_hparams`` sets them by default."""
        sizes = [dim for _, dim in self.dims]
        return HeadShape(
            self.dims,
            CLASSES,
            DOMAINS,
            adapter,
            fused_hidden=min(512, sum(sizes)),
            translator_hidden=min(1028, max(sizes)),
        )


SIZES = {
    "full": Size((("video", 2304), ("flow", 2048), ("audio", 512)), threshold=0.3),
    "compact": Size((("video", 256), ("flow", 256), ("audio", 256)), threshold=0.2),
}


def batches(shape: HeadShape, runs: int, device: torch.device) -> list[tuple[Labeled, Unlabeled]]:
    """Features of about unit variance; every run has clips of its own.

    A clip is a mixture of its class and another one, in each modality by its own share: some clips are clear, and in
    some the modalities disagree. So both kinds of confident clips occur.
    """
    generator = torch.Generator().manual_seed(0)
    means = {m: torch.randn(CLASSES, d, generator=generator) for m, d in shape.dims}
    shifts = {m: torch.randn(DOMAINS, d, generator=generator) for m, d in shape.dims}

    def draw(high: int) -> Tensor:
        return torch.randint(high, (runs, CLIPS), generator=generator)

    def views(y: Tensor, domain: Tensor, *noises: float) -> list[dict[str, Tensor]]:
        found: list[dict[str, Tensor]] = [{} for _ in noises]
        for name, dim in shape.dims:
            share = torch.rand(runs, CLIPS, 1, generator=generator)
            other = (y + 1 + draw(CLASSES - 1)) % CLASSES
            mixed = share * means[name][y] + (1 - share) * means[name][other]
            for view, noise in zip(found, noises, strict=True):
                random = torch.randn(runs, CLIPS, dim, generator=generator)
                view[name] = (0.4 * mixed + 0.3 * shifts[name][domain] + noise * random).to(device)
        return found

    here = {m: torch.ones(runs, CLIPS, dtype=torch.bool, device=device) for m, _ in shape.dims}
    prepared = []
    for _ in range(BATCHES):
        y, domain, hidden, elsewhere = draw(CLASSES), draw(DOMAINS), draw(CLASSES), draw(DOMAINS)
        (x,) = views(y, domain, 0.9)
        weak, strong = views(hidden, elsewhere, 0.9, 1.2)
        prepared.append(
            (Labeled(x, here, y.to(device), domain.to(device)), Unlabeled(weak, strong, here, elsewhere.to(device)))
        )
    return prepared


class Stack:
    """A stack of runs in training, without the training loop around it."""

    def __init__(self, shape: HeadShape, runs: int, settings: Settings, device: torch.device) -> None:
        self.method: SSMDG = build_stack(shape, range(runs), settings, torch.float32).to(device)
        self.optimiser = build_optimiser(self.method, settings)
        self.streams = RunStreams(range(runs), device)
        self.masks: list[dict[str, Tensor]] = []
        self.steps = 0
        make = self.method.pseudo_labels

        def recorded(*args: dict[str, Tensor]) -> object:
            pseudo = make(*args)
            self.masks.append(dict(pseudo.masks))
            return pseudo

        self.method.pseudo_labels = recorded  # type: ignore[assignment]

    def step(self, labeled: Labeled, unlabeled: Unlabeled) -> None:
        """One training step of all runs."""
        terms = self.method.losses(labeled, unlabeled, self.streams, self.steps)
        self.method.combine(self.method.objectives(terms))
        self.optimiser.step()
        self.steps += 1

    def counts(self) -> tuple[float, float]:
        """Mean clips per run and step with consensus and without, since the last call."""
        accepted, rest = (
            statistics.fmean(masks[name].sum().item() / self.method.runs for masks in self.masks)
            for name in ("accepted", "nonconsensus")
        )
        self.masks.clear()
        return accepted, rest


def warmed_up(shape: HeadShape, runs: int, settings: Settings, device: torch.device) -> Stack:
    """A stack whose runs all start from one that has seen some labeled batches: random heads hardly ever agree."""
    first = Stack(shape, 1, replace(settings, threshold=2.0, learning_rate=1e-3), device)
    prepared = batches(shape, 1, device)
    for k in range(WARMUP):
        first.step(*prepared[k % BATCHES])
    stack = Stack(shape, runs, settings, device)
    with torch.no_grad():
        for parameter, trained in zip(stack.method.parameters(), first.method.parameters(), strict=True):
            parameter.copy_(trained.expand_as(parameter))
    return stack


@dataclass(frozen=True)
class Comparison:
    """Seconds per run and step, the mean clips of both masks, and the share of the loop's steps with a conflict."""

    loop: float
    stack: float
    loop_clips: tuple[float, float]
    stack_clips: tuple[float, float]
    conflicts: float


def seconds(work: Callable[[], object], device: torch.device) -> float:
    """Time of some work: the process's own on a CPU, so that other load counts less; on a GPU the wall's."""
    if device.type == "cpu":
        start = time.process_time()
        work()
        return time.process_time() - start
    torch.cuda.synchronize(device)
    start = time.perf_counter()
    work()
    torch.cuda.synchronize(device)
    return time.perf_counter() - start


def compare(size: Size, adapter: str, runs: int, steps: int, turns: int, device: torch.device) -> Comparison:
    """Let the loop of one model and a stack take their steps in turns; the first turn warms up."""
    settings = Settings(threshold=size.threshold)
    shape = size.shape(adapter)
    stack = warmed_up(shape, runs, settings, device)
    loop = reference_of(stack.method, 0, settings)
    prepared = batches(shape, runs, device)
    singles = [batch_of(labeled, unlabeled, 0) for labeled, unlabeled in prepared]
    reports: list[Report] = []
    times: tuple[list[float], list[float]] = ([], [])
    for turn in range(turns + 1):
        chosen = [(turn * steps + k) % BATCHES for k in range(steps if turn else max(steps, FIRST))]

        def loop_turn(chosen: Sequence[int] = chosen) -> None:
            reports.extend(loop.step(singles[k]) for k in chosen)

        def stack_turn(chosen: Sequence[int] = chosen) -> None:
            for k in chosen:
                stack.step(*prepared[k])

        for found, work, models in ((times[0], loop_turn, 1), (times[1], stack_turn, runs)):
            took = seconds(work, device) / len(chosen) / models
            if turn:
                found.append(took)
    clips = statistics.fmean(r.consensus for r in reports), statistics.fmean(r.nonconsensus for r in reports)
    conflicts = statistics.fmean(r.inner is not None and r.inner < 0 for r in reports)
    return Comparison(statistics.median(times[0]), statistics.median(times[1]), clips, stack.counts(), conflicts)


@dataclass(frozen=True)
class Demand:
    """What a step of one run cannot do without."""

    parameters: int  # elements
    labeled: int  # elements of the parameters that the labeled objective touches
    operations: int  # of matrix products
    moved: int  # bytes


def demand(size: Size, adapter: str) -> Demand:
    """Count operations and bytes on a stack of one run.

    Bytes: each weight matrix is read by every forward pass that uses it and by every backward pass through it to an
    input with a gradient; a gradient is written, read for the norms and read by the update, the labeled one only on the
    parameters it touches; the update reads and writes parameter and two moments. Activations are not counted.
    """
    settings = Settings(threshold=size.threshold)
    stack = Stack(size.shape(adapter), 1, settings, torch.device("cpu"))
    labeled, unlabeled = batches(stack.method.shape, 1, torch.device("cpu"))[0]
    weights_read = 0

    def count(module: nn.Module, inputs: tuple[Tensor, ...]) -> None:
        nonlocal weights_read
        matrices = sum(p.numel() for p in module.parameters(recurse=False) if p.shape[1] > 1)
        # An adapter's own matrix reads a hidden layer, which always has a gradient.
        hidden = not isinstance(module, StackedLinear) or inputs[0].requires_grad
        weights_read += matrices * (2 if hidden else 1)

    for module in stack.method.modules():
        module.register_forward_pre_hook(count)
    parameters = list(stack.method.parameters())
    with FlopCounterMode(display=False) as counter:
        objectives = stack.method.objectives(stack.method.losses(labeled, unlabeled, stack.streams, 0))
        touched = [
            sum(
                p.numel()
                for p, g in zip(
                    parameters,
                    torch.autograd.grad(objective.sum(), parameters, retain_graph=True, allow_unused=True),
                    strict=True,
                )
                if g is not None
            )
            for objective in objectives
        ]
    total = sum(p.numel() for p in parameters)
    moved = 4 * (weights_read + 3 * sum(touched) + 6 * total)
    return Demand(total, touched[0], counter.get_total_flops(), moved)


def product_rate(device: torch.device) -> float:
    """Operations per second of a float32 matrix product of 1024 x 1024, the best of some."""
    a, b = torch.randn(1024, 1024, device=device), torch.randn(1024, 1024, device=device)
    return 2 * 1024**3 / min(seconds(lambda: torch.mm(a, b), device) for _ in range(20))


def memory_rate(device: torch.device) -> float:
    """Bytes per second of ``x += y`` on arrays of 256 MiB: two reads, one write; the best of some."""
    x, y = torch.zeros(2**26, device=device), torch.zeros(2**26, device=device)
    return 3 * 4 * 2**26 / min(seconds(lambda: x.add_(y), device) for _ in range(5))


def top_operators(size: Size, adapter: str, runs: int, steps: int, device: torch.device) -> None:
    """Print the stack's operators by their own time on the CPU, medians over the steps."""
    shape = size.shape(adapter)
    stack = warmed_up(shape, runs, Settings(threshold=size.threshold), device)
    prepared = batches(shape, runs, device)
    own: defaultdict[str, list[float]] = defaultdict(list)
    calls: dict[str, int] = {}
    for k in range(FIRST + steps):
        # One profile per step: a longer one leaves its events on the heap between the tensors, and then every step
        # pays for fresh pages.
        with profile(activities=[ProfilerActivity.CPU]) as found:
            stack.step(*prepared[k % BATCHES])
        for event in found.key_averages():
            if k >= FIRST:
                own[event.key].append(event.self_cpu_time_total / 1e3)
                calls[event.key] = event.count
    medians = {name: statistics.median(values) for name, values in own.items()}
    total = sum(medians.values())
    number = sum(count for name, count in calls.items() if name.startswith("aten::"))
    print(f"\n{runs} runs: {total:.1f} ms and {number} calls of operators a step, those made by operators included\n")
    print("| operator | calls per step | own ms per step | share |")
    print("| --- | --- | --- | --- |")
    for name in sorted(medians, key=lambda name: -medians[name])[:OPERATORS]:
        print(f"| {name} | {calls[name]} | {medians[name]:.2f} | {medians[name] / total:.1%} |")


def available(device: torch.device) -> int:
    """Bytes of memory that are free."""
    return torch.cuda.mem_get_info(device)[0] if device.type == "cuda" else psutil.virtual_memory().available


def main() -> None:
    """Measure and print Markdown tables."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", default="cpu", choices=("cpu", "cuda"))
    parser.add_argument("--stacks", default="1,4,16,64", help="numbers of runs, by commas")
    parser.add_argument("--steps", type=int, default=2, help="per turn")
    parser.add_argument("--turns", type=int, default=5)
    parser.add_argument("--size", default="both", choices=(*SIZES, "both"))
    parser.add_argument("--adapter", default="none", choices=("none", "residual"))
    parser.add_argument("--profile", action="store_true", help="print the stack's operators instead")
    options = parser.parse_args()
    torch.set_num_threads(1)
    device = torch.device(options.device)
    sizes = list(SIZES) if options.size == "both" else [options.size]
    stacks = [int(runs) for runs in options.stacks.split(",")]
    # Once, at the start: freed memory stays in the process and is used again, but counts as taken.
    room = available(device)
    rates = product_rate(device), memory_rate(device)
    clock = "CPU" if device.type == "cpu" else "wall"
    print(
        f"torch {torch.__version__}, {device.type}, 1 thread, {clock} time; float32 matrix product "
        f"{rates[0] / 1e9:.0f} GFLOP/s, memory {rates[1] / 1e9:.1f} GB/s"
    )
    for name in sizes:
        size = SIZES[name]
        need = demand(size, options.adapter)
        floor = need.operations / rates[0] + need.moved / rates[1]
        print(f"\n## {name}, adapter {options.adapter}\n")
        print(
            f"{need.parameters / 1e6:.2f} M parameters a run, {need.labeled / 1e6:.2f} M of them touched by the "
            f"labeled objective. Floor per run and step: {need.operations / 1e9:.2f} GFLOP of matrix products = "
            f"{need.operations / rates[0] * 1e3:.1f} ms, and {need.moved / 1e6:.0f} MB of weights, gradients and "
            f"optimiser state = {need.moved / rates[1] * 1e3:.1f} ms from memory, together {floor * 1e3:.1f} ms (no "
            "overlap; a stack that fits into the cache moves less)."
        )
        if not options.profile:
            print(
                "\n| stack | loop, ms per run and step | stack, ms per run and step | loop / stack | stack / floor "
                "| consensus + other clips, loop | the same, stack | loop's steps with a conflict |"
            )
            print("| --- | --- | --- | --- | --- | --- | --- | --- |")
        for runs in stacks:
            memory = need.parameters * 4 * COPIES * runs
            if memory > room:
                print(
                    f"| {runs} | - | skipped: needs about {memory / GIB:.1f} GiB, free {room / GIB:.1f} "
                    "| - | - | - | - | - |"
                )
                continue
            if options.profile:
                top_operators(size, options.adapter, runs, options.steps, device)
            else:
                found = compare(size, options.adapter, runs, options.steps, options.turns, device)
                clips = [f"{a:.1f} + {b:.1f}" for a, b in (found.loop_clips, found.stack_clips)]
                print(
                    f"| {runs} | {found.loop * 1e3:.1f} | {found.stack * 1e3:.2f} | {found.loop / found.stack:.2f} "
                    f"| {found.stack / floor:.2f} | {clips[0]} | {clips[1]} "
                    f"| {found.conflicts:.0%} |",
                    flush=True,
                )
            gc.collect()


if __name__ == "__main__":
    main()
