-- grain:   one row per run, model, concept, positions, layer, strength, matching and fold
-- source:  scores
-- formula: num_prompts, total and total_squares of logit_diff_matching: sums that add up, so that whatever needs
--          no pairing of a prompt's strengths comes from one scan;
--          fold = hash of concept and prompt modulo 5, the same in every model
-- caveat:  means to an end: read layer_effects, held_out_effects or strength_effects instead. The hash is
--          DuckDB's: another version may fold otherwise. It is hashed again, since modulo a small number
--          hash() of several columns is far from uniform. Variances from these sums lose digits where the
--          mean is far larger than the spread: to 1e-12 of the variance for differences of 100 nats
-- build:   once
select
    run,
    model,
    concept,
    positions,
    layer,
    strength,
    matching,
    (hash(hash(concept, prompt)) % 5)::integer as fold,
    count(*) as num_prompts,
    sum(logit_diff_matching) as total,
    sum(logit_diff_matching * logit_diff_matching) as total_squares
from scores
group by
    run,
    model,
    concept,
    positions,
    layer,
    strength,
    matching,
    (hash(hash(concept, prompt)) % 5)::integer
