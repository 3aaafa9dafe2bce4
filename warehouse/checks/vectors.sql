-- vectors: one row per run, model, concept and layer,
-- so one site a layer (layer_effects joins on it).
select
    run,
    model,
    concept,
    layer,
    'grain' as violation,
    count(*) as num_rows
from vectors
group by run, model, concept, layer
having count(*) > 1
