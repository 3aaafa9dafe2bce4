-- grain:   one row per run, model, concept, positions, layer and control
-- source:  control_prompt_effects
-- formula: delta = mean effect over prompts of one random vector
-- caveat:  the sign of a random vector is arbitrary: over many controls the mean delta tends to 0
-- build:   once
select
    run,
    model,
    concept,
    positions,
    layer,
    control,
    count(*) as num_prompts,
    avg(effect) as delta
from control_prompt_effects
group by run, model, concept, positions, layer, control
