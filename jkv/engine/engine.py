"""The engine: requests in, completions out. The host fills rows, calls the device for many steps, streams tokens out.

Two kinds of compiled programs do all the work: ``decode`` (one, for a run of any length) and ``prefill`` (one a
bucket; chunked for prompts longer than the budget and for policies that look at attention).
"""

import collections
import dataclasses
import functools
import time
from collections.abc import Generator, Iterable, Iterator
from typing import Any, NamedTuple

import jax
import numpy as np
from flax import nnx
from jax.sharding import Mesh

from jkv.distributed.mesh import check_mesh
from jkv.engine.events import Completion, Eviction, Progress, Request, Timings
from jkv.engine.executables import Executables
from jkv.engine.placement import fetch, placement_of, put
from jkv.engine.programs import STEPS_PER_CALL, reads_in_chunks
from jkv.engine.sampling import Greedy, Sampler
from jkv.engine.state import DecodeSetup, DecodeState, empty_state, request_key
from jkv.errors import UserError
from jkv.models.decoder import Decoder
from jkv.policies.base import Policy
from jkv.policies.retention import Retention


class Engine:
    """Decodes requests in ``batch_size`` rows, each owning ``rule.budget`` KV slots.

    model: its dtype is the buffer's, too.  steps_per_call: decode steps a host call; fewer refresh progress more
    often.  parameters: what the policy's ``bind`` returned beside the policy.  record_scores: whether evictions of a
    traced run carry scores.  kv: 'int8' for a buffer of that (`jkv.ops.buffer`).  mesh: devices to share the work,
    with axes `data` (rows) and `model` (heads); the model's weights are on it already (``load`` with `place_weights`),
    and move to the layouts that the compiled decode program chooses. None: one device.  traces counts how often JAX
    traced each program: "decode" stays at 1.

    Raises UserError if the mesh can't share the rows or the model evenly.
    """

    def __init__(
        self,
        model: Decoder,
        *,
        policy: Policy,
        rule: Retention,
        batch_size: int,
        sampler: Sampler | None = None,
        eos_ids: tuple[int, ...] | None = None,
        seed: int = 0,
        steps_per_call: int = STEPS_PER_CALL,
        implementation: str = "auto",
        parameters: Any = (),
        record_scores: bool = False,
        kv: str | None = None,
        mesh: Mesh | None = None,
    ):
        graph, self.weights = nnx.split(model)
        config = model.config
        if mesh is not None:
            check_mesh(config, batch_size, mesh)
        self.placement = placement_of(mesh, config)
        self.setup = DecodeSetup(
            graph=graph,
            config=config,
            policy=policy,
            rule=rule,
            sampler=sampler or Greedy(),
            eos_ids=config.eos_ids if eos_ids is None else eos_ids,
            implementation=implementation,
            record_scores=record_scores,
        )
        self.parameters = self.placement.everywhere(parameters)
        self.dtype = model.dtype
        self.batch_size, self.seed, self.steps_per_call = batch_size, seed, steps_per_call
        self.timings = Timings()
        self._empty = lambda: empty_state(self.setup, batch_size, self.dtype, kv)
        self._executables = Executables(
            self.setup, model, self.weights, self.placement, empty=self._empty, parameters=self.parameters,
            steps_per_call=steps_per_call,
        )  # fmt: skip

    @functools.cached_property
    def state(self) -> DecodeState:
        """The rows in flight. Made after the decode program: to choose kernels a GPU's compiler runs them, which takes
        memory of its own."""
        _ = self.compiled_decode
        return self.placement.empty(self._empty)

    @property
    def compiled_decode(self) -> jax.stages.Compiled:
        """The decode loop, compiled when it is first asked for."""
        return self._executables.decode(self.timings)

    @property
    def traces(self) -> collections.Counter[str]:
        """How often JAX traced each program, by name: "decode" stays at 1, whatever the run's length."""
        return self._executables.traces

    @property
    def kv_bytes(self) -> int:
        """Bytes of the buffer, as allocated once it is; equals L*B*K*S*H*2*itemsize, or with int8 L*B*K*S*(H+4)*2."""
        cache = self.state.cache if "state" in self.__dict__ else jax.eval_shape(self._empty).cache
        return cache.nbytes

    def check(self, request: Request, where: str = "") -> None:
        """Raise UserError if the request can't run in this engine: found before anything is decoded."""
        where = where or f"prompt {request.id!r}"
        vocabulary = self.setup.config.vocab_size
        if not request.prompt_ids:
            raise UserError("the prompt is empty", where=where, mend="give at least one token")
        for token in request.prompt_ids:
            if not 0 <= token < vocabulary:
                raise UserError(
                    f"prompt id {token} is outside the vocabulary of {vocabulary}", where=where, mend="check prompt_ids"
                )
        if request.max_new_tokens < 1:
            raise UserError(f"{request.max_new_tokens} new tokens asked for", where=where, mend="ask for at least 1")
        self.setup.rule.check_prompt(len(request.prompt_ids), where)
        if not self.setup.policy.evicts:
            needed = len(request.prompt_ids) + request.max_new_tokens
            # The last new token is never put into the buffer, so one slot fewer would do.
            if needed - 1 > self.setup.rule.budget:
                raise UserError(
                    f"a prompt of {len(request.prompt_ids)} and {request.max_new_tokens} new tokens don't fit "
                    f"{self.setup.rule.budget} slots and policy full evicts nothing",
                    where=where,
                    mend="leave --budget out, or lower --max-new-tokens",
                )

    def run(self, requests: Iterable[Request], *, trace: bool = False) -> Iterator[Completion | Eviction | Progress]:
        """Decode all requests; yields events as they happen. Requests are checked before the first one runs."""
        queue = collections.deque(requests)
        for request in queue:
            self.check(request)
        rows = [_Row() for _ in range(self.batch_size)]
        # An earlier run may have been left half-way: its rows end here.
        idle = put(np.zeros(self.batch_size, np.bool_), self.state.active.sharding)
        self.state = dataclasses.replace(self.state, active=idle)
        tokens = 0
        while queue or any(row.request for row in rows):
            # Draw the first token of every refilled row; one that ends with it makes room at once.
            while queue and (free := next((i for i, row in enumerate(rows) if not row.request), None)) is not None:
                rows[free] = yield from self._fill(free, queue.popleft(), trace=trace)
                tokens += 1
                yield from self._finished(rows)
            if any(row.request for row in rows):
                drawn = self._call(stop_on_finish=bool(queue), stop_on_evict=trace)
                for row, new in zip(rows, drawn.tokens, strict=True):
                    if row.request:
                        fresh = [int(token) for token in new if token >= 0]
                        row.tokens += fresh
                        tokens += len(fresh)
                if trace:
                    yield from self._evictions(rows, drawn)
                yield Progress(tokens, int(drawn.active.sum()), int(drawn.length[drawn.active].sum()))
                yield from self._finished(rows, drawn)

    def compile(self, prompt_lengths: Iterable[int] = ()) -> None:
        """Compile the decode step, and the prefill of the buckets these prompt lengths fall into."""
        _ = self.compiled_decode
        for length in prompt_lengths:
            self._executables.prefill(length, self.timings)

    def _fill(self, row: int, request: Request, *, trace: bool) -> Generator[Eviction, None, "_Row"]:
        """Put a request into a row. A prompt longer than the budget evicts on the way."""
        length = len(request.prompt_ids)
        program, bucket = self._executables.prefill(length, self.timings)
        ids = np.zeros(bucket, np.int32)
        ids[:length] = request.prompt_ids
        key = request_key(self.seed, request.id, request.sample)
        limit = np.int32(request.max_new_tokens)
        arguments = (np.int32(length), limit, key)
        filled = _Row(request)
        started = time.perf_counter()
        if not reads_in_chunks(self.setup, length):
            self.state, first = program(self.weights, self.state, self.parameters, np.int32(row), ids, *arguments)
            filled.tokens.append(int(first))
            self.timings.prefill += time.perf_counter() - started
            return filled
        done = np.int32(0)
        while not filled.tokens:
            self.state, done, first = program(
                self.weights, self.state, self.parameters, np.int32(row), ids, done, *arguments, np.bool_(trace)
            )
            if int(first) >= 0:
                filled.tokens.append(int(first))
            self.timings.prefill += time.perf_counter() - started
            if trace and (evictions := int(np.asarray(self.state.evictions)[row])) > filled.evictions:
                filled.evictions = evictions
                yield Eviction(request, evictions - 1, int(done) - 1, self._kept(row), self._scores(row))
            started = time.perf_counter()
        return filled

    def _call(self, *, stop_on_finish: bool, stop_on_evict: bool) -> "_Drawn":
        program = self.compiled_decode
        started = time.perf_counter()
        flags = np.bool_(stop_on_finish), np.bool_(stop_on_evict)
        self.state, out = program(self.weights, self.state, self.parameters, *flags)
        state = self.state
        drawn = _Drawn(*jax.device_get((out, state.active, state.cache.length, state.evictions, state.position)))
        self.timings.decode += time.perf_counter() - started
        self.timings.steps += int((drawn.tokens >= 0).any(axis=0).sum())
        return drawn

    def _finished(self, rows: list["_Row"], drawn: "_Drawn | None" = None) -> Iterator[Completion]:
        state = self.state
        active = drawn.active if drawn is not None else np.asarray(state.active)
        if all(row.request is None or active[index] for index, row in enumerate(rows)):
            return
        metadata = jax.device_get((state.evictions, state.peak, state.slot_steps))
        for index, row in enumerate(rows):
            if row.request is None or active[index]:
                continue
            evictions, peak, slot_steps = (int(x[index]) for x in metadata)
            finish = "eos" if row.tokens[-1] in self.setup.eos_ids else "length"
            kept = self._kept(index)
            rows[index] = _Row()
            yield Completion(row.request, row.tokens, finish, evictions, peak, slot_steps, kept)

    def _evictions(self, rows: list["_Row"], drawn: "_Drawn") -> Iterator[Eviction]:
        for index, row in enumerate(rows):
            if row.request is None or drawn.evictions[index] == row.evictions:
                continue
            row.evictions = int(drawn.evictions[index])
            newest = int(drawn.position[index]) - 1
            if self.setup.rule.one_out:
                # The token that took the victim's slot is already in; the eviction happened before it.
                kept, newest = self._kept(index, without=newest), newest - 1
            else:
                kept = self._kept(index)
            yield Eviction(row.request, row.evictions - 1, newest, kept, self._scores(index))

    def _kept(self, row: int, without: int | None = None) -> list:
        cache = self.state.cache
        # The row is an argument of one small program; the length cuts on the host. Slicing on the device by either
        # would compile anew for every value.
        length = int(np.asarray(cache.length)[row])
        positions = fetch(_take_row(cache.positions, row))[..., :length]
        if without is not None:
            layers, heads, n = positions.shape
            positions = positions[positions != without].reshape(layers, heads, n - 1)
        positions = np.sort(positions, axis=-1)
        return positions[0, 0].tolist() if self.setup.rule.granularity == "shared" else positions.tolist()

    def _scores(self, row: int) -> np.ndarray | None:
        """What the row's last eviction decided by, in the order of positions."""
        if (scored := self.state.scored) is None:
            return None
        scores, positions = (fetch(_take_row(x, row)) for x in (scored.scores, scored.positions))
        scores = np.take_along_axis(scores, np.argsort(positions, axis=-1), axis=-1)
        return scores[0, 0] if self.setup.rule.granularity == "shared" else scores


@jax.jit
def _take_row(x: jax.Array, row: int | jax.Array) -> jax.Array:
    return jax.lax.dynamic_index_in_dim(x, row, keepdims=False)


@dataclasses.dataclass
class _Row:
    """The host's side of a row: whose it is and what it has drawn."""

    request: Request | None = None
    tokens: list[int] = dataclasses.field(default_factory=list)
    evictions: int = 0


class _Drawn(NamedTuple):
    """What one device call returned, on the host."""

    tokens: np.ndarray
    active: np.ndarray
    length: np.ndarray
    evictions: np.ndarray
    position: np.ndarray
