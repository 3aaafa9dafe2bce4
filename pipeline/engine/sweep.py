"""The sweep: every layer and strength of every prompt, in one forward.

Flows in: encoded prompts, the directions to add at each layer, a grid. Flows out: `SweepScores`, the two answers'
logits and the log-sum-exp at every point of the grid.

All points of a prompt's grid share everything below the steered layer. `sweep` therefore runs the unsteered prompts
once and, at the site of each tested layer, appends steered copies of them to the batch, which goes on growing to the
last block; final norm and head see the last token of each row alone. `sweep_naive` runs one whole forward for each
layer and strength: the definition, and what tests compare against.

Legend: P prompts, D directions, N tested layers, S strengths, T tokens, H hidden.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from pipeline.engine.batching import micro_batches, token_budget
from pipeline.engine.model import Model, pad_right
from pipeline.engine.readout import Readout, read_normed
from pipeline.engine.stream import Visit, boundary, on_stream, position_mask, steering
from pipeline.engine.tokens import EncodedPrompt, PromptEncoder
from pipeline.engine.vectors import SteeringVectors, random_controls
from pipeline.errors import ActivationError, InterventionError
from pipeline.protocols import Positions, Protocol, Site, StrengthUnit, load_protocol

if TYPE_CHECKING:
    from pipeline.prompts import Prompt


@dataclass(frozen=True)
class SweepGrid:
    """What is swept. `strengths` holds 0, the baseline, which is computed once and shared by all layers."""

    layers: tuple[int, ...]
    strengths: tuple[float, ...]
    site: Site
    positions: Positions


@dataclass(frozen=True)
class SweepScores:
    """`logits` [P, D, N, S, 2] of answers A and B, `logsumexp` [P, D, N, S] over the vocabulary, float32."""

    grid: SweepGrid
    logits: NDArray[np.float32]
    logsumexp: NDArray[np.float32]

    def logit_diff_matching(self, matching: Sequence[str]) -> NDArray[np.float64]:
        """logit(matching) - logit(other), [P, D, N, S], given each prompt's matching letter."""
        sign = np.array([1.0 if letter == "A" else -1.0 for letter in matching])
        logits = self.logits.astype(np.float64)
        return (logits[..., 0] - logits[..., 1]) * sign[:, None, None, None]

    def delta(self, matching: Sequence[str]) -> NDArray[np.float64]:
        """Mean logit_diff_matching at +1 minus that at -1, [D, N]."""
        diff = self.logit_diff_matching(matching)
        plus, minus = self.grid.strengths.index(1.0), self.grid.strengths.index(-1.0)
        return (diff[..., plus] - diff[..., minus]).mean(axis=0)

    def choice_mass(self) -> NDArray[np.float64]:
        """P(A) + P(B), [P, D, N, S]."""
        log_probs = self.logits.astype(np.float64) - self.logsumexp.astype(np.float64)[..., None]
        return np.exp(log_probs).sum(axis=-1)


@torch.inference_mode()
def sweep(
    model: Model,
    prompts: Sequence[EncodedPrompt],
    directions: NDArray[np.float32],
    answer_ids: Sequence[int],
    grid: SweepGrid,
    budget: int = 0,
    names: Sequence[str] = (),
) -> SweepScores:
    """Score the whole grid by branching. `directions` is [D, layers of the model, H]: what strength 1 adds.

    `budget` is the number of tokens a block may take at once (0: from the device); results do not depend on it.
    Raises InterventionError for directions that do not fit or are not finite, ActivationError for scores that are
    not finite (with the prompt's entry in `names`).
    """
    _check_directions(model, directions, grid)
    nonzero = [s for s in grid.strengths if s != 0]
    branches = len(directions) * len(nonzero)
    scores = _empty_scores(len(prompts), len(directions), grid)
    steps = _steps(directions, nonzero, model)
    answers = torch.tensor(list(answer_ids), device=model.device)
    last_block = [boundary(grid.site, layer, model.num_layers) == model.num_layers for layer in grid.layers]
    rows_per_prompt = 1 + branches * (len(grid.layers) - sum(last_block))
    for group in micro_batches([len(p.ids) for p in prompts], rows_per_prompt, budget or token_budget(model)):
        readout = _branch(model, [prompts[i] for i in group], steps, grid, answers)
        _scatter(scores, readout, group, len(directions), grid)
    return _checked(model, scores, names)


def _branch(model: Model, prompts: Sequence[EncodedPrompt], steps: Tensor, grid: SweepGrid, answers: Tensor) -> Readout:
    """One branching forward over one micro-batch. `steps` is [layers, branches, H].

    Rows come out as: the unsteered prompts, then for each tested layer and branch the prompts steered there.
    """
    num_prompts, num_branches = len(prompts), steps.shape[1]
    lengths = [len(p.ids) for p in prompts]
    ids = pad_right([p.ids for p in prompts], model.device)
    mask = position_mask(grid.positions, lengths, [p.suffix_start for p in prompts], ids.shape[1]).to(model.device)
    last = torch.tensor(lengths, device=model.device) - 1
    index = torch.arange(num_prompts, device=model.device)
    everywhere = bool(mask.all())

    def grow(step: Tensor) -> Visit:  # step [branches, H]
        def visit(stream: Tensor) -> Tensor:  # [rows, T, H]
            change = step[:, None, None, :]  # [branches, 1, 1, H]
            if not everywhere:
                change = change * mask[None, :, :, None]  # [branches, P, T, H]
            steered = stream[None, :num_prompts] + change  # [branches, P, T, H]
            return torch.cat([stream, steered.flatten(0, 1)])

        return visit

    def finish(stream: Tensor) -> Tensor:
        """Keep each row's last token, in float32 for norm and head; steer here what is steered behind the last
        block, since only the last token is still looked at (all three position sets hold it)."""
        tail = stream.view(-1, num_prompts, *stream.shape[1:])[:, index, last]  # [rows / P, P, H]
        at_end = [layer for layer in grid.layers if boundary(grid.site, layer, model.num_layers) == model.num_layers]
        if at_end:
            tail = torch.cat([tail, tail[:1] + steps[at_end[0]][:, None, :]])
        return tail.flatten(0, 1)[:, None].to(torch.float32)  # [rows, 1, H]

    visits: dict[int, Visit] = {}
    for layer in grid.layers:
        at = boundary(grid.site, layer, model.num_layers)
        if at < model.num_layers and num_branches:
            visits[at] = grow(steps[layer])
    visits[model.num_layers] = finish
    with on_stream(model, visits):
        normed = model.forward_blocks(ids)[:, 0]
    return read_normed(model, normed.to(torch.float32), answers)


def _scatter(scores: SweepScores, readout: Readout, group: Sequence[int], num_directions: int, grid: SweepGrid) -> None:
    """Put a micro-batch's rows where they belong; the baseline goes to every layer and direction."""
    num_prompts = len(group)
    logits = readout.logits.view(-1, num_prompts, 2).cpu().numpy()  # [1 + N * D * S', P, 2]
    lse = readout.logsumexp.view(-1, num_prompts).cpu().numpy()
    steered = [k for k, s in enumerate(grid.strengths) if s != 0]
    shape = (len(grid.layers), num_directions, len(steered), num_prompts)
    if 0.0 in grid.strengths:
        zero = grid.strengths.index(0.0)
        scores.logits[group, :, :, zero] = logits[0][:, None, None]
        scores.logsumexp[group, :, :, zero] = lse[0][:, None, None]
    if steered:
        branched = logits[1:].reshape(*shape, 2).transpose(3, 1, 0, 2, 4)  # [P, D, N, S', 2]
        branched_lse = lse[1:].reshape(shape).transpose(3, 1, 0, 2)
        for k, at in enumerate(steered):
            scores.logits[group, :, :, at] = branched[:, :, :, k]
            scores.logsumexp[group, :, :, at] = branched_lse[:, :, :, k]


@torch.inference_mode()
def sweep_naive(
    model: Model,
    prompts: Sequence[EncodedPrompt],
    directions: NDArray[np.float32],
    answer_ids: Sequence[int],
    grid: SweepGrid,
    batch: int = 8,
) -> SweepScores:
    """The reference: one forward of the plain transformers model for each layer, strength and direction, with an
    attention mask, and logits over all positions as its own head gives them (upcast to float32)."""
    _check_directions(model, directions, grid)
    scores = _empty_scores(len(prompts), len(directions), grid)
    answers = torch.tensor(list(answer_ids), device=model.device)
    for start in range(0, len(prompts), batch):
        group = list(range(start, min(start + batch, len(prompts))))
        lengths = [len(prompts[i].ids) for i in group]
        ids = pad_right([prompts[i].ids for i in group], model.device)
        width = ids.shape[1]
        attention = position_mask("all", lengths, [0] * len(group), width).to(model.device)
        mask = position_mask(grid.positions, lengths, [prompts[i].suffix_start for i in group], width)
        last = torch.tensor(lengths, device=model.device) - 1
        for d, direction in enumerate(directions):
            for n, layer in enumerate(grid.layers):
                for s, strength in enumerate(grid.strengths):
                    with steering(model, direction[layer], layer, strength, grid.site, mask):
                        logits = model.hf(input_ids=ids, attention_mask=attention.long(), use_cache=False).logits
                    final = logits[torch.arange(len(group)), last].to(torch.float32)  # [P, V]
                    scores.logits[group, d, n, s] = final[:, answers].cpu().numpy()
                    scores.logsumexp[group, d, n, s] = torch.logsumexp(final, dim=-1).cpu().numpy()
    return scores


def sweep_prompts(
    model: Model,
    prompts: Sequence[Prompt],
    vectors: SteeringVectors,
    protocol: Protocol | str = "caa",
    controls: int = 0,
    strengths: Sequence[float] | None = None,
    layers: Sequence[int] | None = None,
    seed: int = 0,
) -> SweepScores:
    """Sweep `prompts` with `vectors` as the protocol says; direction 0 is the vector, then `controls` random ones of
    the same norm. For a notebook; studies use the same functions through `stages`."""
    chosen = load_protocol(protocol) if isinstance(protocol, str) else protocol
    encoder = PromptEncoder(model.tokenizer, chosen.answer_form, model.max_positions)
    first = int(chosen.first_layer_fraction * model.num_layers)
    grid = SweepGrid(
        layers=tuple(layers) if layers is not None else tuple(range(first, model.num_layers)),
        strengths=tuple(strengths) if strengths is not None else chosen.strengths,
        site=chosen.steer_site,
        positions=chosen.positions,
    )
    directions = steering_directions(vectors, chosen.strength_unit, controls, seed)
    encoded = [encoder.prompt(p.text, p.id) for p in prompts]
    return sweep(model, encoded, directions, encoder.answer_ids, grid, names=[p.id for p in prompts])


def steering_directions(
    vectors: SteeringVectors, strength_unit: StrengthUnit, controls: int, seed: int
) -> NDArray[np.float32]:
    """The vector and `controls` random directions of the same norm at each layer: [1 + controls, L, H]."""
    unit = vectors.unit(strength_unit)
    label = f"{vectors.origin.model}/{vectors.origin.concept}"
    return np.concatenate([unit[None], random_controls(unit, controls, seed, label)])


def _steps(directions: NDArray[np.float32], nonzero: Sequence[float], model: Model) -> Tensor:
    """What each branch adds at each layer, in the model's dtype: [layers, D * S', H]; the product with the strength
    is taken in float32, as `stream.steering` does."""
    product = torch.from_numpy(directions)[:, None] * torch.tensor(nonzero, dtype=torch.float32)[None, :, None, None]
    return product.flatten(0, 1).transpose(0, 1).to(device=model.device, dtype=model.dtype)


def _empty_scores(num_prompts: int, num_directions: int, grid: SweepGrid) -> SweepScores:
    shape = (num_prompts, num_directions, len(grid.layers), len(grid.strengths))
    logits = np.full((*shape, 2), np.nan, dtype=np.float32)
    return SweepScores(grid, logits, np.full(shape, np.nan, dtype=np.float32))


def _check_directions(model: Model, directions: NDArray[np.float32], grid: SweepGrid) -> None:
    expected = (model.num_layers, model.hidden_size)
    if directions.ndim != 3 or directions.shape[1:] != expected:
        raise InterventionError(
            f"directions have shape {directions.shape}; model {model.name!r} needs [any, {expected[0]}, {expected[1]}]"
        )
    wrong = [layer for layer in grid.layers if not 0 <= layer < model.num_layers]
    if wrong or not grid.layers:
        raise InterventionError(f"layers {list(grid.layers)} do not fit a model with layers 0 to {expected[0] - 1}")
    if not np.isfinite(directions[:, list(grid.layers)]).all():
        raise InterventionError(f"a direction for model {model.name!r} holds NaN or infinity; extract it again")


def _checked(model: Model, scores: SweepScores, names: Sequence[str]) -> SweepScores:
    broken = np.argwhere(~(np.isfinite(scores.logits).all(axis=-1) & np.isfinite(scores.logsumexp)))
    if len(broken):
        prompt, _, layer, strength = (int(i) for i in broken[0])
        raise ActivationError(
            f"model {model.name!r}, {names[prompt] if names else f'prompt {prompt}'}: the score at layer "
            f"{scores.grid.layers[layer]}, strength {scores.grid.strengths[strength]:g} is not finite; "
            "use smaller strengths, or dtype float32"
        )
    return scores
