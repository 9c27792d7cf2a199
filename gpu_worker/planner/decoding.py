"""Tokens from a causal language model: a static cache, rows of any length together, guidance folded into the batch.

Every row has a generator of its own, and token n of a row is drawn with the n-th number of it: a song makes the same
tokens alone, in company and resumed, wherever the model's logits are the same.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Protocol

import torch
from torch import Tensor
from transformers import PreTrainedModel, StaticCache

from serinette.errors import InvalidOutput, InvalidSpec

# Is reported the tokens that are decided and how many there will be (None: the model chooses) before each further one;
# answers which rows, by place, are no longer wanted.
Observe = Callable[[int, int | None], frozenset[int]]

# Of a prompt at a time: the whole of a long one would need its square in memory.
READ_TOKENS = 256


@dataclass(frozen=True, slots=True)
class Sampling:
    """How a token is drawn. Temperature 0 takes the likeliest; `cfg_scale` 1 is without guidance.

    The defaults are those of ACE-Step 1.5's own API for its language model.
    """

    temperature: float = 0.85
    top_p: float = 0.9
    cfg_scale: float = 2.0

    def __post_init__(self) -> None:
        """Raises InvalidSpec for what is out of bounds."""
        for name, value, least, most in (
            ("lm_temperature", self.temperature, 0.0, 2.0),
            ("lm_top_p", self.top_p, 0.01, 1.0),
            ("lm_cfg_scale", self.cfg_scale, 1.0, 10.0),
        ):
            if not least <= value <= most:
                raise InvalidSpec(f"{name}: must be {least} to {most}, not {value}", field=name)


class Path(Protocol):
    """What a row may write and has written."""

    @property
    def done(self) -> bool:
        """Whether nothing is left to write."""

    def allowed(self) -> Tensor | list[int] | None:
        """Places in the head's output that may come next: a mask or a list; None for all."""

    def advance(self, place: int) -> None:
        """Take the place that was drawn."""


@dataclass(slots=True)
class Row:
    """One text: token ids to go on from, and how. `written` of its `most` tokens are decided and end `prompt`."""

    prompt: list[int]
    negative: list[int]  # what guidance leads away from, ended by the same written tokens; unused at scale 1
    seed: int
    sampling: Sampling
    path: Path
    most: int
    written: int = 0
    dropped: bool = field(default=False, init=False)

    @property
    def live(self) -> bool:
        """Whether another token is wanted."""
        return not (self.dropped or self.path.done)


class Head:
    """The output rows of a model that are asked for: all, or those of some tokens."""

    def __init__(self, model: PreTrainedModel, tokens: Sequence[int] | None = None) -> None:
        weight = output_weight(model)
        self._tokens: Tensor | None = None
        self._weight = weight
        if tokens is not None:
            first, count = tokens[0], len(tokens)
            neighbors = list(tokens) == list(range(first, first + count))
            self._tokens = torch.tensor(tokens, device=weight.device)
            self._weight = weight[first : first + count] if neighbors else weight[self._tokens]

    def logits(self, hidden: Tensor) -> Tensor:
        """Float logits [rows, places] of hidden states [rows, dims]."""
        return torch.nn.functional.linear(hidden, self._weight).float()

    def ids(self, places: Tensor) -> Tensor:
        """Token ids of places in the output."""
        return places if self._tokens is None else self._tokens[places]


def output_weight(model: PreTrainedModel) -> Tensor:
    """The weight of a model's last layer, [tokens, dims]."""
    weight: Tensor = model.get_output_embeddings().weight  # type: ignore[no-untyped-call]  # transformers leaves it so
    return weight


@torch.inference_mode()
def decode(model: PreTrainedModel, head: Head, rows: Sequence[Row], observe: Observe, total: int | None) -> None:
    """Write every row to its end, or until it is given up, which is checked before each token.

    Raises:
        InvalidSpec: a row is longer than the model can read.
        InvalidOutput: the model's logits are not finite.
    """
    if not any(row.live for row in rows):
        return
    guided = [place for place, row in enumerate(rows) if row.sampling.cfg_scale != 1]
    texts = [row.prompt for row in rows] + [rows[place].negative for place in guided]
    steps = max(row.most - row.written for row in rows if row.live)
    fed = _Fed(model, texts, steps)
    draw = _Draw(rows, guided, steps, model.device)
    before = max(row.most for row in rows) - steps
    tokens: Tensor | None = None
    for step in range(steps):
        for place in observe(before + step, total):
            rows[place].dropped = True
        if not any(row.live for row in rows):
            return
        hidden = fed.begin() if tokens is None else fed.feed(torch.cat([tokens, tokens[draw.guided]]))
        places = draw(head.logits(hidden), rows, step)
        for row, place in zip(rows, places.tolist(), strict=True):
            if place < 0:
                raise InvalidOutput("the planner's logits are not finite: its weights or its dtype are wrong for it")
            if row.live:
                row.path.advance(place)
        tokens = head.ids(places)


class _Fed:
    """The model with what it has read in its cache. Rows are padded on the left, so that all write the same slot."""

    def __init__(self, model: PreTrainedModel, texts: Sequence[Sequence[int]], steps: int) -> None:
        length = max(map(len, texts))
        longest = model.config.max_position_embeddings
        if length + steps > longest:
            raise InvalidSpec(
                f"the planner reads at most {longest} tokens, and caption, lyrics and codes may take {length + steps}: "
                "shorten them"
            )
        ids, pads = torch.zeros(len(texts), length, dtype=torch.long), []
        for row, text in zip(ids, texts, strict=True):
            pads.append(length - len(text))
            row[pads[-1] :] = torch.tensor(text)
        self._model, self._slot = model.base_model, length
        slots = -(-(length + steps) // 8) * 8  # attention's kernels want rows of masks aligned
        renamed = "cache" in inspect.signature(self._model.forward).parameters  # by transformers 5.24
        self._cache = {"cache" if renamed else "past_key_values": StaticCache(config=model.config, max_cache_len=slots)}
        self._hidden_dtype = model.dtype
        self._pads = torch.tensor(pads, device=model.device)[:, None]
        self._slots = torch.arange(slots, device=model.device)
        self._prompts = ids.to(model.device)

    def begin(self) -> Tensor:
        """Read the texts; their last hidden states [texts, dims]."""
        for start in range(0, self._slot, READ_TOKENS):
            read = slice(start, min(start + READ_TOKENS, self._slot))
            hidden = self._read(self._prompts[:, read], self._slots[read])
        return hidden

    def feed(self, tokens: Tensor) -> Tensor:
        """Read one more token of each text; the hidden states [texts, dims] there."""
        self._slot += 1
        return self._read(tokens[:, None], self._slots[self._slot - 1 : self._slot])

    def _read(self, ids: Tensor, slots: Tensor) -> Tensor:
        hidden: Tensor = self._model(
            input_ids=ids,
            attention_mask=self._mask(slots),
            position_ids=(slots - self._pads).clamp(min=0),
            use_cache=True,
            **self._cache,
        ).last_hidden_state
        return hidden[:, -1]

    def _mask(self, slots: Tensor) -> Tensor:
        """What each slot adds to each other's attention, [texts, 1, slots, all slots].

        Finite everywhere: a slot of padding has nothing to attend to, and as not a number would spoil its row.
        """
        seen = (self._slots <= slots[:, None]) & (self._slots >= self._pads[:, :, None])
        least = torch.finfo(self._hidden_dtype).min
        return torch.zeros(seen.shape, dtype=self._hidden_dtype, device=seen.device).masked_fill_(~seen, least)[:, None]


class _Draw:
    """Draws a place for each row from its own numbers."""

    def __init__(self, rows: Sequence[Row], guided: list[int], steps: int, device: torch.device) -> None:
        def column(values: list[float]) -> Tensor:
            return torch.tensor(values, device=device)[:, None]

        self.guided = torch.tensor(guided, dtype=torch.long, device=device)
        self._scale = column([rows[place].sampling.cfg_scale for place in guided])
        self._temperature = column([row.sampling.temperature for row in rows])
        self._top_p = column([row.sampling.top_p for row in rows])
        numbers = torch.zeros(len(rows), steps)
        for place, row in enumerate(rows):
            own = torch.rand(row.most, generator=torch.Generator().manual_seed(row.seed))[row.written :][:steps]
            numbers[place, : len(own)] = own
        self._numbers = numbers.to(device)

    def __call__(self, logits: Tensor, rows: Sequence[Row], step: int) -> Tensor:
        """Places [rows]; -1 where the logits are not finite."""
        with_condition, without = logits[: len(rows)], logits[len(rows) :]
        if len(without):
            # u + s (c - u), written as c + (s - 1) (c - u).
            away = with_condition[self.guided] - without
            with_condition = with_condition.index_add(0, self.guided, (self._scale - 1) * away)
        for place, row in enumerate(rows):
            allowed = row.path.allowed() if row.live else None
            if allowed is not None:
                with_condition[place].masked_fill_(~_mask(allowed, with_condition[place]), -torch.inf)
        return pick(with_condition, self._numbers[:, step : step + 1], self._temperature, self._top_p)


def _mask(allowed: Tensor | list[int], row: Tensor) -> Tensor:
    if isinstance(allowed, Tensor):
        return allowed
    mask = torch.zeros_like(row, dtype=torch.bool)
    mask[allowed] = True
    return mask


def pick(logits: Tensor, numbers: Tensor, temperature: Tensor, top_p: Tensor) -> Tensor:
    """Places [rows] drawn from float logits [rows, places] by numbers [rows, 1] in 0 to 1; -1 without a finite logit.

    The likeliest places that together reach `top_p` are kept (nucleus sampling, Holtzman et al. 2020), and the number
    is looked up in their cumulated probabilities.
    """
    greedy = temperature == 0
    probabilities, order = (logits / temperature.masked_fill(greedy, 1)).softmax(-1).sort(descending=True, stable=True)
    before = probabilities.cumsum(-1) - probabilities
    kept = (before < top_p) & (probabilities > 0)
    upto = (probabilities * kept).cumsum(-1)
    found = torch.searchsorted(upto, numbers.masked_fill(greedy, 0) * upto[:, -1:], right=True)
    last = kept.sum(-1, keepdim=True) - 1
    place = order.gather(-1, torch.minimum(found, last).clamp(min=0))
    return torch.where(last < 0, -1, place)[:, 0]
