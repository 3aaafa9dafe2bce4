"""Statistics that SQL cannot do: layers chosen anew in every draw, exact permutation tests, verdicts.

Flows in: a connection with the views (`pipeline.warehouse.views.connect`). Flows out: figures with their
intervals and p-values, and verdicts on claims.

    cells         the scores of one model and concept as arrays, one cell at a time
    layer_choice  how sure the best layer is: bootstrap, split halves, a test against no effect at any layer
    permutation   exact permutation tests over models, and what the fewest models can show
    factors       method, architecture and size effects on one scale
    verdicts      the study's key findings: supported, not supported, or not testable with these data
    claims        published figures (`data/published_claims.toml`) against the warehouse's own
    tables        all of it as columns and rows, by name

Imports numpy and scipy, neither torch nor Ray. Every random number comes from a seed that is derived from
run, model and concept, so a figure is the same every time. Definitions are in `warehouse/README.md`.
"""
