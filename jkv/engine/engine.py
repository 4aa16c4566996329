"""The engine: requests in, completions out. This is the host's side of it.

The host reads a request's prompt into a free row (a prefill program), then calls the decode program, which makes many
steps for all rows on the device. After each call it collects the tokens, yields what happened, and gives rows whose
request has finished to the next requests. `jkv.engine.programs` lists what is compiled for that.
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
from jaxtyping import Shaped

from jkv.axes import Array, Bool, Int
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
    """Decodes requests in a batch of rows, each of which owns ``rule.budget`` KV slots.

    Attributes:
        setup: what the compiled programs depend on.
        weights: the model's.
        parameters: the policy's, placed.
        placement: one device or a mesh.
        dtype: of activations, and of weights and buffer unless they are int8.
        batch_size: B, rows.
        seed: of all random draws.
        steps_per_call: decode steps in one call of the decode program.
        timings: seconds and steps so far. It may be replaced to begin anew.
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
        """Nothing is compiled or allocated before it is needed; see `compile`.

        Args:
            model: the decoder. Its dtype is the buffer's, too. On a mesh its weights are in place already
                (`jkv.load.load` with `jkv.distributed.weights.place_weights`); they move to the layouts that the
                decode program chooses.
            policy: scores tokens when a row is full; bound to the model (``Policy.bind``).
            rule: the budget, how many slots stay after an eviction, and what is never evicted.
            batch_size: B, rows that are decoded together.
            sampler: draws the next token; greedy unless given.
            eos_ids: tokens that end a sequence; those of the model's config unless given, () for none.
            seed: with a request's id and sample it determines all its random draws.
            steps_per_call: decode steps in one call of the device. Fewer yield progress more often, but cost more
                calls.
            implementation: which implementation of the array operations runs: 'auto', 'xla', 'pallas' or
                'reference' (`jkv.ops.dispatch`).
            parameters: what ``Policy.bind`` returned beside the policy: a pytree of arrays.
            record_scores: whether the evictions of a traced run carry scores.
            kv: how keys and values are stored: None in the model's dtype, or 'int8' (`jkv.ops.buffer`).
            mesh: devices that share the work, with axes `data` (rows) and `model` (heads); None for one device.

        Raises:
            UserError: the rows or the model can't be divided evenly over the mesh.
        """
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
        self.parameters = self.placement.replicate(parameters)
        self.dtype = model.dtype
        self.batch_size, self.seed, self.steps_per_call = batch_size, seed, steps_per_call
        self.timings = Timings()
        self._make_state = lambda: empty_state(self.setup, batch_size, self.dtype, kv)
        self._executables = Executables(
            self.setup, model, self.weights, self.placement, make_state=self._make_state, parameters=self.parameters,
            steps_per_call=steps_per_call,
        )  # fmt: skip

    @functools.cached_property
    def state(self) -> DecodeState:
        """The batch in flight, allocated when it is first asked for.

        The decode program is compiled before that: to choose kernels, the compiler for GPU runs candidates, which
        takes memory of its own.
        """
        _ = self.compiled_decode
        return self.placement.make_state(self._make_state)

    @property
    def compiled_decode(self) -> jax.stages.Compiled:
        """The decode program (`jkv.engine.step.decode`), compiled when it is first asked for."""
        return self._executables.decode(self.timings)

    @property
    def traces(self) -> collections.Counter[str]:
        """How often JAX traced each program, by name: "decode" stays at 1, whatever the run's length."""
        return self._executables.traces

    @property
    def kv_bytes(self) -> int:
        """Bytes of all keys and values: L*B*K*S*H*2*itemsize, or with int8 L*B*K*S*(H+4)*2. It is counted over the
        arrays themselves, or over their shapes if they are not allocated yet."""
        cache = self.state.cache if "state" in self.__dict__ else jax.eval_shape(self._make_state).cache
        return cache.nbytes

    def check(self, request: Request, where: str = "") -> None:
        """Check that the request can run in this engine.

        Args:
            request: what is to be decoded.
            where: what an error names as its place; the request's id unless given.

        Raises:
            UserError: the prompt is empty, or has a token outside the vocabulary; no new token is asked for; the prompt
                doesn't fit the budget, or what is never evicted doesn't fit what stays after an eviction; or the policy
                evicts nothing, and prompt and new tokens don't fit the budget together.
        """
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
            # The last new token needs no slot: it is drawn, but never put into the buffer.
            if needed - 1 > self.setup.rule.budget:
                raise UserError(
                    f"a prompt of {len(request.prompt_ids)} and {request.max_new_tokens} new tokens don't fit "
                    f"{self.setup.rule.budget} slots and policy full evicts nothing",
                    where=where,
                    mend="leave --budget out, or lower --max-new-tokens",
                )

    def run(self, requests: Iterable[Request], *, trace: bool = False) -> Iterator[Completion | Eviction | Progress]:
        """Decode all requests, and yield events as they happen.

        Like any generator it does nothing before the first event is asked for. Then all requests are checked before
        any of them runs. A run may be abandoned: the next one starts with idle rows.

        Args:
            requests: what to decode, in the order in which they get rows.
            trace: yield evictions, too. Calls of the device then end at each eviction, which is slower; tokens are the
                same.

        Yields:
            Progress after each call of the decode program; a Completion when a request has finished; with ``trace`` an
            Eviction when a row has evicted.

        Raises:
            UserError: a request can't run (`check`).
            Exception: what `compile` raises, where something is compiled only now.
        """
        queue = collections.deque(requests)
        for request in queue:
            self.check(request)
        rows = [_Row() for _ in range(self.batch_size)]
        # An earlier run may have been abandoned: make its rows idle.
        idle = put(np.zeros(self.batch_size, np.bool_), self.state.active.sharding)
        self.state = dataclasses.replace(self.state, active=idle)
        tokens = 0
        while queue or any(row.request for row in rows):
            # Prefill draws the first token. A request that ends with it leaves its row to the next one at once.
            while queue and (free := next((i for i, row in enumerate(rows) if not row.request), None)) is not None:
                rows[free] = yield from self._fill(free, queue.popleft(), trace=trace)
                tokens += 1
                yield from self._completions(rows)
            if any(row.request for row in rows):
                drawn = self._call_decode(stop_on_finish=bool(queue), stop_on_evict=trace)
                for row, new in zip(rows, drawn.tokens, strict=True):
                    if row.request:
                        fresh = [int(token) for token in new if token >= 0]
                        row.tokens += fresh
                        tokens += len(fresh)
                if trace:
                    yield from self._evictions(rows, drawn)
                yield Progress(tokens, int(drawn.active.sum()), int(drawn.length[drawn.active].sum()))
                yield from self._completions(rows, drawn)

    def compile(self, prompt_lengths: Iterable[int] = ()) -> None:
        """Compile now what a run would compile when it first needs it.

        Args:
            prompt_lengths: tokens of prompts to come. The prefill programs for them are compiled beside the decode
                program.

        Raises:
            UserError: the policy's scores have a wrong shape.
            NotImplementedError: the implementation asked for by name can't run here.
            ValueError: there is no implementation of that name.
        """
        _ = self.compiled_decode
        for length in prompt_lengths:
            self._executables.prefill(length, self.timings)

    def _fill(self, row: int, request: Request, *, trace: bool) -> Generator[Eviction, None, "_Row"]:
        """Read a request's prompt into a row and draw its first token. Returns the host's side of the row; yields the
        evictions of a traced run, which a prompt that is read in chunks may cause."""
        length = len(request.prompt_ids)
        compiled, bucket = self._executables.prefill(length, self.timings)
        ids = np.zeros(bucket, np.int32)
        ids[:length] = request.prompt_ids
        key = request_key(self.seed, request.id, request.sample)
        limit = np.int32(request.max_new_tokens)
        arguments = (np.int32(length), limit, key)
        filled = _Row(request)
        started = time.perf_counter()
        if not reads_in_chunks(self.setup, length):
            self.state, first = compiled(self.weights, self.state, self.parameters, np.int32(row), ids, *arguments)
            filled.tokens.append(int(first))
            self.timings.prefill += time.perf_counter() - started
            return filled
        done = np.int32(0)
        while not filled.tokens:
            self.state, done, first = compiled(
                self.weights, self.state, self.parameters, np.int32(row), ids, done, *arguments, np.bool_(trace)
            )
            if int(first) >= 0:
                filled.tokens.append(int(first))
            self.timings.prefill += time.perf_counter() - started
            if trace and (evictions := int(np.asarray(self.state.evictions)[row])) > filled.evictions:
                filled.evictions = evictions
                yield Eviction(request, evictions - 1, int(done) - 1, self._kept(row), self._recorded_scores(row))
            started = time.perf_counter()
        return filled

    def _call_decode(self, *, stop_on_finish: bool, stop_on_evict: bool) -> "_Drawn":
        """Call the decode program once, and fetch what it drew."""
        compiled = self.compiled_decode
        started = time.perf_counter()
        flags = np.bool_(stop_on_finish), np.bool_(stop_on_evict)
        self.state, out = compiled(self.weights, self.state, self.parameters, *flags)
        state = self.state
        drawn = _Drawn(*jax.device_get((out, state.active, state.cache.length, state.evictions, state.position)))
        self.timings.decode += time.perf_counter() - started
        self.timings.steps += int((drawn.tokens >= 0).any(axis=0).sum())
        return drawn

    def _completions(self, rows: list["_Row"], drawn: "_Drawn | None" = None) -> Iterator[Completion]:
        """Yield the requests that have finished, and free their rows. drawn: from the last decode call, None after a
        prefill."""
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
        """Yield the evictions of the last decode call: one a row at most, as the call ended with them."""
        for index, row in enumerate(rows):
            if row.request is None or drawn.evictions[index] == row.evictions:
                continue
            row.evictions = int(drawn.evictions[index])
            newest = int(drawn.position[index]) - 1
            if self.setup.rule.one_out:
                # The token that took the evicted one's slot is in the buffer by now. It wasn't at the eviction.
                kept, newest = self._kept(index, without=newest), newest - 1
            else:
                kept = self._kept(index)
            yield Eviction(row.request, row.evictions - 1, newest, kept, self._recorded_scores(index))

    def _kept(self, row: int, without: int | None = None) -> list:
        """Positions of the tokens in a row's buffer, ascending, without the one given: [n] or nested [L][K][n]."""
        cache = self.state.cache
        # Row and length are no constants of what runs on the device, or each of their values would be compiled for: the
        # row is an argument of one small program, and the length is applied on the host.
        length = int(np.asarray(cache.length)[row])
        positions = fetch(_take_row(cache.positions, row))[..., :length]
        if without is not None:
            layers, heads, n = positions.shape
            positions = positions[positions != without].reshape(layers, heads, n - 1)
        positions = np.sort(positions, axis=-1)
        return positions[0, 0].tolist() if self.setup.rule.granularity == "shared" else positions.tolist()

    def _recorded_scores(self, row: int) -> np.ndarray | None:
        """What the row's last eviction was decided by, in the order of positions; None unless scores are recorded."""
        if (scored := self.state.scored) is None:
            return None
        scores, positions = (fetch(_take_row(x, row)) for x in (scored.scores, scored.positions))
        scores = np.take_along_axis(scores, np.argsort(positions, axis=-1), axis=-1)
        return scores[0, 0] if self.setup.rule.granularity == "shared" else scores


@jax.jit
def _take_row(x: Shaped[Array, "B *rest"], row: int | Int[Array, ""]) -> Shaped[Array, "*rest"]:
    """One row of an array."""
    return jax.lax.dynamic_index_in_dim(x, row, keepdims=False)


@dataclasses.dataclass
class _Row:
    """The host's side of a row: its request (None while it is free), the new tokens, and the evictions yielded."""

    request: Request | None = None
    tokens: list[int] = dataclasses.field(default_factory=list)
    evictions: int = 0


class _Drawn(NamedTuple):
    """What a call of the decode program gave, on the host: the tokens drawn (-1 for none), and of every row the state's
    fields ``active``, ``cache.length``, ``evictions`` and ``position``."""

    tokens: Int[np.ndarray, "B steps"]
    active: Bool[np.ndarray, " B"]
    length: Int[np.ndarray, " B"]
    evictions: Int[np.ndarray, " B"]
    position: Int[np.ndarray, " B"]
