-- vector_model_cosines: one row per run, concept, site, model, other_model, layer.
select
    run,
    concept,
    site,
    model,
    other_model,
    layer,
    'grain' as violation,
    count(*) as num_rows
from vector_model_cosines
group by run, concept, site, model, other_model, layer
having count(*) > 1
