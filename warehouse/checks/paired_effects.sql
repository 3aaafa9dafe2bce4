-- paired_effects: one row per run, model, concept, positions, layer.
select
    run,
    model,
    concept,
    positions,
    layer,
    'grain' as violation,
    count(*) as num_rows
from paired_effects
group by run, model, concept, positions, layer
having count(*) > 1
