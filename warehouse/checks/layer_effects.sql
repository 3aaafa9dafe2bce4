-- layer_effects: one row per run, model, concept, positions and layer;
-- every layer of a cell has the same prompts.
select
    run,
    model,
    concept,
    positions,
    layer,
    'grain' as violation,
    count(*) as num_rows
from layer_effects
group by run, model, concept, positions, layer
having count(*) > 1
union all
select
    run,
    model,
    concept,
    positions,
    null::integer as layer,
    'uneven prompts' as violation,
    count(*) as num_rows
from layer_effects
group by run, model, concept, positions
having min(num_prompts) < max(num_prompts)
