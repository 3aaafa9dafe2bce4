"""The `steering-vectors` library, as its documentation shows: `train_steering_vector` on pairs of texts, then
`SteeringVector.apply` around `model(**tokenizer(prompt))`.

Its examples evaluate one prompt at a time, at multipliers -1, 0 and 1; its hook takes batches too.
"""

from __future__ import annotations

from collections.abc import Sequence
from importlib.metadata import version

import numpy as np
import torch
from numpy.typing import NDArray
from steering_vectors import SteeringVector, SteeringVectorTrainingSample, train_steering_vector

from benchmarks.sides.side import BATCH, batches, over_grid
from benchmarks.sides.workload import Workload


class SteeringVectorsLibrary:
    name = "steering-vectors"
    version = version("steering-vectors")
    mean_difference = True
    notes = "train_steering_vector(batch_size=8); apply() around one prompt a forward, (-1, 0, 1) at each layer."
    documented_batch = 1
    baseline_every_layer = True

    def extract(self, workload: Workload) -> NDArray[np.float32]:
        samples = [
            SteeringVectorTrainingSample(
                workload.text(matching.ids), workload.text(other.ids), matching.read, other.read
            )
            for matching, other in zip(workload.matching, workload.other, strict=True)
        ]
        vector = train_steering_vector(workload.hf, workload.tokenizer, samples, batch_size=BATCH)
        layers = range(workload.model.num_layers)
        return torch.stack([vector.layer_activations[layer] for layer in layers]).float().cpu().numpy()

    @torch.no_grad()
    def sweep(
        self,
        workload: Workload,
        directions: NDArray[np.float32],
        layers: Sequence[int],
        strengths: Sequence[float],
        batch: int = BATCH,
    ) -> NDArray[np.float32]:
        texts = [workload.text(prompt.ids) for prompt in workload.prompts]

        def run(layer: int, strength: float) -> NDArray[np.float32]:
            vector = SteeringVector({layer: torch.from_numpy(directions[layer]).to(workload.hf.device)})
            found = []
            with vector.apply(workload.hf, multiplier=strength):
                for group in batches(len(texts), batch):
                    inputs = workload.tokenizer([texts[i] for i in group], return_tensors="pt", padding=True)
                    last = workload.hf(**inputs.to(workload.hf.device)).logits[:, -1]
                    found.append(last[:, list(workload.answer_ids)].float().cpu().numpy())
            return np.concatenate(found)

        return over_grid(run, layers, strengths)


SIDE = SteeringVectorsLibrary()
