-- layer_deltas: one row per run, model, concept, positions and layer.
select
    run,
    model,
    concept,
    positions,
    layer,
    'grain' as violation,
    count(*) as num_rows
from layer_deltas
group by run, model, concept, positions, layer
having count(*) > 1
