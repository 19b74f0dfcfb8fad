"""The compiled programs of the fold: which there are, in which sizes, and how each is made.

A program that reads the table and one that writes it are two: where both are one, XLA copies the table (decision 3).
Sizes are fixed, so nothing compiles once all that are `needed` are there.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property, partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from forecaster.core import advance, birth, row, table
from forecaster.core.advance import Serving
from forecaster.core.calls import Shape
from forecaster.core.model import Model, ModelSpec, untrained
from forecaster.core.perceive import Steps

# Level 1 compiles a quarter faster than the default, and runs as fast. Products that are left to XLA's own loops, not
# handed to its library of small kernels, are quicker at these sizes.
QUICK: Any = {"xla_backend_optimization_level": 1, "xla_cpu_experimental_ynn_fusion_type": ""}
# XLA's older loops compile in half the time. One lane runs as fast with them, what is wider slower (decision 57).
OLDER: Any = QUICK | {"xla_cpu_use_fusion_emitters": False}
SHAPES = Shape(128, 1, 600, 750), Shape(16, 16, 1150, 130), Shape(1, 128, 660, 27)
"""Of the programs that take steps in: wide for many series, deep for few (small batches, too), deeper for one."""
FEW = SHAPES[1].lanes  # series for which the deep one is enough: the wide one is never the cheapest
PLANT = 64  # newborn series a batch
REWARM = 64  # series that are warmed up at once
COPIED = 32  # rows that are copied out or put back at once
LENDERS = 512  # series of a partition that a newborn borrows from

Key = tuple[str, int]
"""Name and size."""
Programs = dict[Key, Any]
BESIDE: tuple[Key, ...] = (
    ("rewarm", REWARM),
    ("set_warmed", REWARM),
    ("lend", LENDERS),
    ("plant", PLANT),
    ("take", COPIED),
    ("put", COPIED),
)
"""Those beside the steps, the longest to compile first."""


def shapes_for(most_series: int) -> tuple[Shape, ...]:
    """Of `SHAPES`, those that steps of at most so many series run in: what is not compiled does not delay a start."""
    return SHAPES[1:2] if most_series <= FEW else SHAPES


def needed(shapes: Sequence[Shape]) -> list[Key]:
    """Every program of a fold with these shapes, once: one that has rounds may be as wide as what is copied."""
    steps = [(name, shape.lanes) for shape in shapes for name in _names(shape)]
    return list(dict.fromkeys([*steps, *BESIDE]))


def _names(shape: Shape) -> tuple[str, str]:
    """The program that computes, and the one that writes."""
    return ("advance", "write") if shape.rounds == 1 else ("rounds", "put")


def serving_of(model: Model) -> Serving:
    """What the programs are told of a model."""
    params = {name: jnp.asarray(p, jnp.float32) for name, p in model.params.items()}
    trained = jax.device_put(np.bool_(bool(model.version)))  # jnp.asarray would compile
    first_share = jax.device_put(np.float32(model.card.first_share))
    return Serving(params, jnp.asarray(model.periods, jnp.int32), trained, first_share)


@dataclass(frozen=True)
class Recipe:
    """What the programs of a fold are made from; its `repr` says all of it. Compiles in any thread."""

    spec: ModelSpec
    table_rows: int
    shapes: tuple[Shape, ...]

    def __call__(self, key: Key) -> Any:
        """Compile a program."""
        function, writes, arguments = self._source(key)
        options = OLDER if key == ("rounds", 1) else QUICK
        return jax.jit(function, donate_argnums=0 if writes else ()).lower(*arguments).compile(options)

    def _source(self, key: Key) -> tuple[Callable[..., Any], bool, tuple[Any, ...]]:
        """A program: the function, whether it writes its first argument (the table), and its arguments' shapes."""
        name, size = key
        spec, rows, serving = self.spec, self._rows, self._serving

        def result(function: Callable[..., Any], *arguments: Any) -> Any:
            return jax.eval_shape(function, *arguments)

        kinds = jnp.int32, jnp.float32, jnp.bool_
        idx, real, flag = (result(partial(jnp.zeros, size, kind)) for kind in kinds)
        number = result(partial(jnp.zeros, (), jnp.int32))
        more = result(partial(jnp.zeros, (size, len(spec.covariates)), jnp.float32))
        steps = Steps(real, real, real, flag, flag, flag, more)
        rewarm, lend = partial(advance.rewarm, spec), partial(birth.lend, spec)
        match name:
            case "advance":
                program = self._step, False, (serving, rows, idx, steps)
            case "write":
                program = table.write, True, (rows, idx, result(self._step, serving, rows, idx, steps)[0])
            case "rounds":
                most = next(shape.rounds for shape in self.shapes if shape.lanes == size)
                rounds = partial(advance.advance_rounds, spec)
                program = rounds, False, (serving, rows, idx, _like(steps, most), number)
            case "put":
                program = table.put, True, (rows, idx, result(table.take, rows, idx))
            case "take":
                program = table.take, False, (rows, idx)
            case "rewarm":
                program = rewarm, False, (serving, rows, idx)
            case "set_warmed":
                program = advance.set_warmed, True, (rows, idx, result(rewarm, serving, rows, idx))
            case "lend":
                program = lend, False, (rows, idx, flag)
            case _:
                program = birth.plant, True, (rows, idx, real, _like(result(lend, rows, idx, flag), size))
        return program

    @cached_property
    def _step(self) -> Callable[..., Any]:
        """One object for all that trace it: JAX remembers by function what it has traced."""
        return partial(advance.advance, self.spec)

    @cached_property
    def _rows(self) -> Any:
        return jax.eval_shape(lambda: table.empty(row.layout(self.spec), self.table_rows))

    @cached_property
    def _serving(self) -> Any:
        return jax.eval_shape(lambda: serving_of(untrained(self.spec)))


def _like(tree: Any, *lead: int) -> Any:
    """The same shapes with further axes in front."""
    return jax.tree.map(lambda x: jax.ShapeDtypeStruct((*lead, *x.shape), x.dtype), tree)
