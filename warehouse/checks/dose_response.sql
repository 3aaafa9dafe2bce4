-- dose_response: one row per run, model, concept, positions, layer.
select
    run,
    model,
    concept,
    positions,
    layer,
    'grain' as violation,
    count(*) as num_rows
from dose_response
group by run, model, concept, positions, layer
having count(*) > 1
