-- grain:   one row per run, model, concept, layer and site
-- source:  stored_vectors
-- formula: coherence = |mean d|^2 / mean |d|^2 over the pair differences d, in [0, 1]
-- caveat:  norms differ by one to two orders with depth and model; compare norm / residual_norm instead
select
    run,
    model,
    concept,
    layer,
    site,
    vector,
    norm,
    residual_norm,
    standard_error,
    coherence,
    num_pairs
from stored_vectors
